"""The web page: a few marked pictures in, masks out. Gradio is needed to serve it, not to import this."""

from .limits import Limits
from .methods import MethodPool
from .server import check_gradio, serve
from .session import Session

__all__ = ["Limits", "MethodPool", "Session", "check_gradio", "serve"]
