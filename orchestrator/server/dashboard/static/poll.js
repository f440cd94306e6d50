// Asks for something again and again while the page can be seen, and less often while the server does not answer.

import { announce } from "./announce.js";

const LONGEST = 30_000; // milliseconds

export class Poll {
  /** `ask` is called every `milliseconds`, never twice at once, until `stop`. */
  constructor(ask, milliseconds) {
    this.ask = ask;
    this.pause = milliseconds;
    this.wait = milliseconds;
    this.stopped = false;
    this.asking = false;
    this.onVisible = () => !document.hidden && this.now();
    document.addEventListener("visibilitychange", this.onVisible);
    this.now();
  }

  /** Ask at once, as after an action. */
  async now() {
    clearTimeout(this.timer);
    if (this.stopped || this.asking || document.hidden) return;
    this.asking = true;
    try {
      await this.ask();
      if (this.wait > this.pause && !this.stopped) announce("The server answers again.");
      this.wait = this.pause;
    } catch (error) {
      if (this.stopped) return;
      if (error.status === 401) window.dispatchEvent(new Event("unauthorized"));
      else if (this.wait === this.pause) announce(error.message);
      this.wait = Math.min(LONGEST, this.wait * 2);
    } finally {
      this.asking = false;
    }
    if (!this.stopped) this.timer = setTimeout(() => this.now(), this.wait);
  }

  stop() {
    this.stopped = true;
    clearTimeout(this.timer);
    document.removeEventListener("visibilitychange", this.onVisible);
  }
}
