"""The pages: labelling and campaign, and the JSON API below them."""

from dal.web.app import Options, create_app
from dal.web.connections import Limits
from dal.web.server import Listening, make_server

__all__ = ["Limits", "Listening", "Options", "create_app", "make_server"]
