"""What the server allows: the page loads nothing from other hosts, and uploads are limited in size and number."""

from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from time import monotonic
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

#: Sources that browsers may load from. Gradio's own page needs inline scripts and styles, and blobs for drawings.
POLICY = b"default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; frame-ancestors 'self'"
#: Bytes of an uploaded file, at most; seconds after which it is deleted; uploads in that time, at most.
MAX_UPLOAD, KEPT, MAX_UPLOADS = 8 * 2**20, 600, 100
#: Bytes around a file in an upload: the boundaries and headers of its form.
FORM = 2**12


class Guard:
    """ASGI middleware. It adds a content security policy to every answer, and answers uploads over a limit with 413."""

    def __init__(self, app: Callable[[Message, Receive, Send], Awaitable[None]]) -> None:
        self.app = app
        self.uploads: deque[float] = deque(maxlen=MAX_UPLOADS)  # when they came

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (b"content-security-policy", POLICY)]
            await send(message)

        if scope["type"] == "http" and scope["method"] == "POST" and scope["path"].endswith("/upload"):
            size = dict(scope["headers"]).get(b"content-length", b"")  # a browser always sends it
            now = monotonic()
            many = len(self.uploads) == MAX_UPLOADS and now - self.uploads[0] < KEPT
            if many or not size.isdigit() or int(size) > MAX_UPLOAD + FORM:
                await send_with_policy({"type": "http.response.start", "status": 413})
                await send({"type": "http.response.body", "body": b"too large, or too many uploads: try again later"})
                return
            self.uploads.append(now)
        await self.app(scope, receive, send_with_policy)
