// The connection to the inspector. It reconnects by itself, and reports when it is lost.

const MIN_DELAY = 500, MAX_DELAY = 5000, MAX_TRIES = 60; // milliseconds; about five minutes

export class Link {
  constructor(onUpdate, onTrouble) {
    this.onUpdate = onUpdate;
    this.onTrouble = onTrouble;
    this.tries = 0;
    this.onOpen = () => {};
    this.open();
  }

  open() {
    const socket = new WebSocket(new URL("live", location.href.replace(/^http/, "ws")));
    this.socket = socket;
    socket.onopen = () => {
      this.tries = 0;
      this.onTrouble("");
      this.onOpen();
    };
    socket.onmessage = (message) => this.onUpdate(JSON.parse(message.data));
    socket.onclose = () => {
      this.tries += 1;
      if (this.tries > MAX_TRIES) {
        this.onTrouble("The inspector does not answer any more. What you see is old; reload the page to try again.");
        return;
      }
      this.onTrouble("The inspector does not answer: the program has ended, or is busy. What you see is old; trying again.");
      setTimeout(() => this.open(), Math.min(MIN_DELAY * 2 ** Math.min(this.tries - 1, 10), MAX_DELAY));
    };
  }

  send(what) {
    if (this.socket.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify(what));
  }
}
