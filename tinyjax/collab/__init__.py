"""Split training of one network over processes: devices below, a cloud above, a link between.

Needs the extra ``collab``.
"""

from tinyjax.collab.cloud import Cloud
from tinyjax.collab.credentials import Credentials, make_credentials, read_credentials, token
from tinyjax.collab.device import Device
from tinyjax.collab.dialing import Dial
from tinyjax.collab.halves import Lower, Upper
from tinyjax.collab.learning import compressed
from tinyjax.collab.ledger import Refused
from tinyjax.collab.lines import Answers, Line, within
from tinyjax.collab.messages import Kind, Message, read, write
from tinyjax.collab.serving import Server, serve
from tinyjax.collab.shaping import Link, parse_link
from tinyjax.collab.tunnel import Traffic
from tinyjax.collab.ways import Way, Ways, coded, plain

__all__ = [
    "Answers",
    "Cloud",
    "Credentials",
    "Device",
    "Dial",
    "Kind",
    "Line",
    "Link",
    "Lower",
    "Message",
    "Refused",
    "Server",
    "Traffic",
    "Upper",
    "Way",
    "Ways",
    "coded",
    "compressed",
    "make_credentials",
    "parse_link",
    "plain",
    "read",
    "read_credentials",
    "serve",
    "token",
    "within",
    "write",
]
