"""The pages: labelling and campaign, and the JSON API below them."""

from typing import TYPE_CHECKING

from dal._lazy import names_of

if TYPE_CHECKING:
    from dal.web.app import Options, create_app
    from dal.web.connections import Limits
    from dal.web.server import Listening, make_server
else:
    __getattr__ = names_of(
        __name__,
        {
            "dal.web.app": ("Options", "create_app"),
            "dal.web.connections": ("Limits",),
            "dal.web.server": ("Listening", "make_server"),
        },
        extra="web",
    )

__all__ = ["Limits", "Listening", "Options", "create_app", "make_server"]
