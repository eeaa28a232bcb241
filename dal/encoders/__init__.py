"""Encoders: frozen models that turn texts and pictures into features, once, when a pool is built."""

from typing import TYPE_CHECKING

from dal._lazy import names_of

if TYPE_CHECKING:
    from dal.encoders.named import tuned
    from dal.encoders.network import OnnxEncoder, TorchEncoder
    from dal.encoders.protocol import Encoder
    from dal.encoders.sentences import SentenceEncoder
    from dal.encoders.tuning import Tuning
    from dal.encoders.vectorisers import VectoriserEncoder
else:
    __getattr__ = names_of(
        __name__,
        {
            "dal.encoders.named": ("tuned",),
            "dal.encoders.network": ("OnnxEncoder", "TorchEncoder"),
            "dal.encoders.protocol": ("Encoder",),
            "dal.encoders.sentences": ("SentenceEncoder",),
            "dal.encoders.tuning": ("Tuning",),
            "dal.encoders.vectorisers": ("VectoriserEncoder",),
        },
    )

__all__ = ["Encoder", "SentenceEncoder", "TorchEncoder", "OnnxEncoder", "VectoriserEncoder", "Tuning", "tuned"]
