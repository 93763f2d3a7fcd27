"""Add security headers to every answer: the sources that the page may load, and the sites that may frame it."""

from __future__ import annotations

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

NOWHERE, IN_A_SPACE = "'none'", "'self' https://huggingface.co https://*.hf.space"
"""The sites whose pages may frame this one."""
POLICY = {
    "default-src": "'self'",
    # Gradio's page has its settings in a script, and builds templates and scripts of gr.HTML as functions from text.
    "script-src": "'self' 'unsafe-inline' 'unsafe-eval'",
    "style-src": "'self' 'unsafe-inline'",
    "img-src": "'self' data: blob:",
    "media-src": "'self' data: blob:",  # the camera
    "font-src": "'self' data:",
    "connect-src": "'self' data: blob:",  # a photo that was pasted or cut is read back from a blob
    "worker-src": "'self' blob:",
    "object-src": "'none'",
    "base-uri": "'self'",
    "form-action": "'self'",
}
"""The Content-Security-Policy by directive: the page loads nothing from another host. (https://www.w3.org/TR/CSP3/)"""


class SecurityHeaders:
    """An ASGI middleware that adds the headers to every answer."""

    def __init__(self, app: ASGIApp, frame_ancestors: str):
        self.app = app
        policy = {**POLICY, "frame-ancestors": frame_ancestors}
        self.headers = {
            "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "same-origin",  # a link to a run holds its prompt
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on and add the headers to its answer."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self.headers)
            await send(message)

        await self.app(scope, receive, send_with_headers)
