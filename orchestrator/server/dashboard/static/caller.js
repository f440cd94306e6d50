// Who looks at the page, and by which paths of the API: an operator's reach the sessions of all groups.

import { json, path } from "./api.js";

export class Caller {
  constructor(fields) {
    this.name = fields.name;
    this.group = fields.group;
    this.isOperator = fields.is_operator;
    this.needsToken = fields.needs_token;
    this.sessions = this.isOperator ? "/v1/operator/sessions" : "/v1/sessions";
  }

  session(id, rest = "") {
    return this.sessions + path`/${id}` + rest;
  }

  /** Return a session's agent as the caller calls it: an operator sees its group too. */
  agent(row) {
    return row.group === undefined ? row.agent_id : `${row.group}:${row.agent_id}`;
  }
}

/** Return who has this token; throws ApiError 401 if nobody has. */
export const callerOf = async (bearer) => new Caller(await json("/v1/caller", { bearer }));
