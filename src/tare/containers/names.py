"""Names and ids of containers: their grammar, random ones, and look-up by prefix."""

from __future__ import annotations

import re
import secrets
from collections.abc import Container as Contains

from tare.errors import InvalidArgument

NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+\Z")
"""The grammar of names, also of checkpoints."""

_QUALITIES = (
    "amber agile ample apt basic bold brave breezy bright brisk calm candid clear clever cosy crisp curious deft eager early earnest "
    "even fair fleet fond frank fresh gentle glad golden grand handy happy honest humble jolly keen kind lean light lively loyal lucid "
    "mellow merry mild modest neat nimble noble patient plain plucky polite proud quick quiet rapid ready rustic sage serene sharp shy "
    "silent silver simple sleek smart snug sober solid spry steady sturdy subtle sunny sure swift tender tidy trim true upbeat vivid "
    "warm wise witty young zesty"
).split()

# Weights, measures and vessels: what a tare is subtracted from.
_THINGS = (
    "amphora anvil ballast barge barrel basket beaker bobbin bottle bowl bucket cabin cable canoe carafe carat cargo cask casket chest "
    "coffer compass cradle crate creel cup dory dram drum firkin flagon flask float freight gallon gauge gill girder goblet grain "
    "gram hamper hatch hod hold hopper hull jar jug keel keg kettle kilo ladle lading ledger lever lug mast mug ounce pail pallet "
    "pannier peck pint pitcher plumb pound punnet quart quay rack raft rudder sack scale scoop scuttle shaft shell skiff sled stone "
    "tank tankard teacup thimble tonne tray trunk tub tun urn vat vial wagon wharf winch"
).split()


def check_name(name: str) -> str:
    """The name without its leading slash; ``InvalidArgument`` when it does not fit the grammar."""
    bare = name.removeprefix("/")
    if not NAME.match(bare):
        raise InvalidArgument(f"Invalid container name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed")
    return bare


def random_name(taken: Contains[str]) -> str:
    """A readable name that is not in ``taken``."""
    while True:
        name = f"{secrets.choice(_QUALITIES)}_{secrets.choice(_THINGS)}"
        if name not in taken:
            return name
        name += str(secrets.randbelow(1000))
        if name not in taken:
            return name


def new_id() -> str:
    """A container or exec id: 64 hexadecimal digits, of which the first twelve are never all decimal (they become a host name)."""
    while True:
        identifier = secrets.token_hex(32)
        if not identifier[:12].isdecimal():
            return identifier
