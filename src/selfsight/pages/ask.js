// What a page asks of its server. Paths are relative: the token is in the address of the page.

// mistake: whether something else may be asked for, as nothing is broken.
export class Refused extends Error {
  constructor(message, mistake = false) {
    super(message);
    this.mistake = mistake;
  }
}

async function answered(path, how) {
  let response;
  try {
    response = await fetch(path, how);
  } catch {
    throw new Refused("The server does not answer. Start it again with the same command, and open the address that it prints.");
  }
  if (response.ok) return response;
  const said = await response.json().catch(() => ({}));
  throw new Refused([said.what || `The server says ${response.status}.`, said.do].filter(Boolean).join(" "), [400, 404, 422].includes(response.status));
}

export const ask = async (path) => (await answered(path)).json();

export const tell = async (path, body) => {
  const how = { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) };
  return (await answered(path, how)).json();
};

export const send = async (path, file) => {
  const how = { method: "POST", headers: { "content-type": "application/octet-stream" }, body: file };
  return (await answered(path, how)).json();
};

// Pictures, as addresses of blobs. Few are asked for at a time, the last one wanted first; the `most` last used are kept.
export class Pictures {
  constructor(size, most, atOnce) {
    Object.assign(this, { size, most, atOnce, kept: new Map(), waiting: [], running: 0 });
  }

  get(id) {
    const known = this.kept.get(id);
    if (known) {
      this.kept.delete(id); // and to the end
      this.kept.set(id, known);
      return known;
    }
    const found = new Promise((resolve, reject) => this.waiting.push({ id, resolve, reject }));
    this.kept.set(id, found);
    found.catch(() => this.kept.delete(id));
    for (const [old, address] of this.kept) {
      if (this.kept.size <= this.most) break;
      this.kept.delete(old);
      address.then((url) => setTimeout(() => URL.revokeObjectURL(url), 5000), () => {}); // who shows it has drawn it
    }
    this.start();
    return found;
  }

  async start() {
    if (this.running >= this.atOnce || !this.waiting.length) return;
    const { id, resolve, reject } = this.waiting.pop();
    this.running += 1;
    try {
      resolve(URL.createObjectURL(await (await answered(`pictures/${id}/${this.size}`)).blob()));
    } catch (error) {
      reject(error);
    }
    this.running -= 1;
    this.start();
  }
}

export function made(tag, className = "", ...children) {
  const element = document.createElement(tag);
  element.className = className;
  element.append(...children); // text stays text
  return element;
}
