"""``system migrate``: convert a data root that no daemon uses to another storage driver."""

from __future__ import annotations

import sys

from tare.cli import humanize
from tare.cli.failures import CliError
from tare.cli.flags import Command
from tare.cli.fsck import maintenance

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tare.cli.context import Context
    from tare.cli.flags import Options


def _migrate(context: Context, options: Options) -> int:
    if not options.text("to"):
        raise CliError("give the driver to convert to: --to erofs, overlay or vfs")
    done = maintenance("migrate", "--data-root", options.text("data-root"), "--to", options.text("to"))
    layers = f"{done['layers']} layers ({humanize.size(done['bytes'])}) and {done['snapshots']} containers converted"
    sys.stdout.write(f"{done['source']} to {done['target']}: {layers}\n")
    return 0


MIGRATE = Command(
    "system migrate",
    "system migrate --to DRIVER [OPTIONS]",
    "Convert the layers of a data root, which no daemon uses, to another storage driver",
    _migrate,
    (
        ("data-root", "", "string", "The data root", "/var/lib/tare"),
        ("to", "", "string", "Storage driver to convert to: 'erofs', 'overlay' or 'vfs'"),
    ),
    most=0,
    examples=("tare system migrate --to overlay",),
)
