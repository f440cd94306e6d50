// Numbers as people read them.

export const megabytes = (value) => (value === null || value === undefined ? "–" : `${Math.round(value)} MiB`);

export const percent = (value) => (value === null || value === undefined ? "–" : `${Math.round(value)} %`);

export function bytes(count) {
  for (const unit of ["B", "KiB", "MiB"]) {
    if (count < 1024) return `${Math.round(count * 10) / 10} ${unit}`;
    count /= 1024;
  }
  return `${Math.round(count * 10) / 10} GiB`;
}

export function duration(seconds) {
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 90) return `${Math.round(seconds * 10) / 10} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return seconds < 172_800 ? `${Math.round(seconds / 3600)} h` : `${Math.round(seconds / 86_400)} d`;
}

export const moment = (seconds) => new Date(seconds * 1000).toISOString().slice(0, 19).replace("T", " ");
