// The connection to the inspector. It comes back by itself, and says when it is gone.

const FIRST = 500, LONGEST = 5000, TRIES = 60; // milliseconds; about five minutes

export class Link {
  constructor(news, gone) {
    this.news = news;
    this.gone = gone;
    this.tries = 0;
    this.opened = () => {};
    this.open();
  }

  open() {
    const socket = new WebSocket(new URL("live", location.href.replace(/^http/, "ws")));
    this.socket = socket;
    socket.onopen = () => {
      this.tries = 0;
      this.gone("");
      this.opened();
    };
    socket.onmessage = (message) => this.news(JSON.parse(message.data));
    socket.onclose = () => {
      this.tries += 1;
      if (this.tries > TRIES) {
        this.gone("The inspector does not answer any more. What you see is old; reload the page to try again.");
        return;
      }
      this.gone("The inspector does not answer: the program has ended, or is busy. What you see is old; trying again.");
      setTimeout(() => this.open(), Math.min(FIRST * 2 ** Math.min(this.tries - 1, 10), LONGEST));
    };
  }

  send(what) {
    if (this.socket.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify(what));
  }
}
