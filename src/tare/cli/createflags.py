"""The flags of ``run`` and ``create``, and the checks that belong to a single value.

Checks here are those docker's client makes while parsing; whatever needs several flags, files or a mode is in `createbody`.
"""

from __future__ import annotations

from tare.cli.flags import parse_size
from tare.cli.mountspec import parse_mount
from tare.cli.networkspec import is_ip, parse_network

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tare.cli.flags import Kind, Row

_SYSCTLS = frozenset(f"kernel.{name}" for name in ("msgmax", "msgmnb", "msgmni", "sem", "shmall", "shmmax", "shmmni", "shm_rmid_forced"))
_ULIMITS = frozenset("core cpu data fsize locks memlock msgqueue nice nofile nproc rss rtprio rttime sigpending stack".split())


def _env(text: str) -> str:
    if not text:
        raise ValueError("invalid environment variable: ")
    if text.startswith("="):
        raise ValueError(f"invalid environment variable: {text}")
    return text


def _ip(text: str) -> str:
    if not is_ip(text.strip()):
        raise ValueError(f"IP address is not correctly formatted: {text.strip()}")
    return text.strip()


def _domain(text: str) -> str:
    domain = text.strip(" ")
    if domain == ".":
        return domain
    labels = domain.removesuffix(".").split(".")
    allowed = "abcdefghijklmnopqrstuvwxyz0123456789-_"
    fine = all(label and len(label) <= 63 and label[0] not in "-" and label[-1] not in "-" for label in labels)
    if not fine or not any(char.isalpha() for char in domain) or any(char not in allowed for char in domain.lower().replace(".", "")):
        raise ValueError(f"{domain} is not a valid domain")
    return domain


def _extra_host(text: str) -> str:
    name, separator, address = text.partition("=")
    if not separator:
        name, separator, address = text.partition(":")
    if not separator or not name:
        raise ValueError(f'bad format for add-host: "{text}"')
    if address != "host-gateway":
        bare = address[1:-1] if address.startswith("[") and address.endswith("]") else address
        if not is_ip(bare):
            raise ValueError(f'invalid IP address in add-host: "{address}"')
        address = bare
    return f"{name}:{address}"


def _sysctl(text: str) -> str:
    name, separator, _ = text.partition("=")
    if not separator:
        raise ValueError(f"sysctl '{text}' is not allowed")
    if name not in _SYSCTLS and not name.startswith(("net.", "fs.mqueue.")):
        raise ValueError(f"sysctl '{text}' is not allowed")
    return text


def _ulimit(text: str) -> object:
    name, separator, limits = text.partition("=")
    if not separator:
        raise ValueError(f"invalid ulimit argument: {text}")
    if name not in _ULIMITS:
        raise ValueError(f"invalid ulimit type: {name}")
    parts = limits.split(":")
    if len(parts) > 2 or not parts[0]:
        raise ValueError(
            f"too many limit value arguments - {limits}, can only have up to two, `soft[:hard]`"
            if parts[0]
            else 'strconv.ParseInt: parsing "": invalid syntax'
        )
    numbers = []
    for part in reversed(parts):
        try:
            numbers.append(int(part))
        except ValueError:
            raise ValueError(f'strconv.ParseInt: parsing "{part}": invalid syntax') from None
    hard, soft = numbers[0], numbers[-1]
    if hard != -1 and (soft == -1 or soft > hard):
        raise ValueError(f"ulimit soft limit must be less than or equal to hard limit: {soft} > {hard}")
    return {"Name": name, "Hard": hard, "Soft": soft}


def _link(text: str) -> str:
    if not text or text.count(":") > 1:
        raise ValueError(f"bad format for links: {text}" if text else "empty string specified for links")
    return text


def _device_rule(text: str) -> str:
    words = text.split(" ")
    if len(words) == 3 and words[0] in ("a", "b", "c"):
        major, colon, minor = words[1].partition(":")
        numbers = all(part == "*" or part.isdecimal() for part in (major, minor))
        if colon and numbers and 1 <= len(words[2]) <= 3 and not words[2].strip("rwm"):
            return text
    raise ValueError(f"invalid device cgroup format '{text}'")


def _device_part(text: str) -> tuple[str, str]:
    path, separator, value = text.partition(":")
    if not separator or not path:
        raise ValueError(f"bad format: {text}")
    if not path.startswith("/dev/"):
        raise ValueError(f"bad format for device path: {text}")
    return path, value


def _weight_device(text: str) -> object:
    path, value = _device_part(text)
    if not value.isdecimal() or (int(value) > 0 and not 10 <= int(value) <= 1000):
        raise ValueError(f"invalid weight for device: {text}")
    return {"Path": path, "Weight": int(value)}


def _bps_device(text: str) -> object:
    path, value = _device_part(text)
    try:
        rate = parse_size(value)
    except ValueError:
        raise ValueError(
            f"invalid rate for device: {text}. The correct format is <device-path>:<number>[<unit>]. Number must be a positive "
            "integer. Unit is optional and can be kb, mb, or gb"
        ) from None
    return {"Path": path, "Rate": rate}


def _iops_device(text: str) -> object:
    path, value = _device_part(text)
    if not value.isdecimal():
        raise ValueError(
            f"invalid rate for device: {text}. The correct format is <device-path>:<number>. Number must be a positive integer"
        )
    return {"Path": path, "Rate": int(value)}


def _gpus(text: str) -> object:
    """A device request: ``all``, a number, or ``device=0,capabilities=utility`` with quotes round what has commas of its own."""
    from tare.cli.mountspec import split_fields

    request: dict[str, object] = {"Driver": "", "Count": 0, "DeviceIDs": None, "Capabilities": [["gpu"]], "Options": {}}
    seen = set()
    for field in split_fields(text):
        key, equals, value = field.partition("=")
        key, value = (key, value) if equals else ("count", field)
        if key in seen:
            raise ValueError(f"gpu request key '{key}' can be specified only once")
        seen.add(key)
        if key == "driver":
            request["Driver"] = value
        elif key == "count":
            if value != "all" and not value.isdecimal():
                raise ValueError(f'invalid count ({value}): value must be either "all" or an integer: invalid syntax')
            request["Count"] = -1 if value == "all" else int(value)
        elif key == "device":
            request["DeviceIDs"] = value.split(",")
        elif key == "capabilities":
            request["Capabilities"] = [[*value.split(","), "gpu"]]
        elif key == "options":
            request["Options"] = dict(pair.partition("=")[::2] for pair in value.split(","))
        else:
            raise ValueError(f"unexpected key '{key}' in '{field}'")
    if "count" not in seen and "device" not in seen:
        request["Count"] = 1
    return request


def _label(text: str) -> str:
    if not text or text.startswith("="):
        raise ValueError(f"invalid label '{text}': empty name")
    return text


CREATE_KINDS: dict[str, Kind] = {
    "env": ("list", True, _env),
    "ip": ("list", True, _ip),
    "domain": ("list", True, _domain),
    "extra-host": ("list", True, _extra_host),
    "sysctl": ("map", True, _sysctl),
    "ulimit": ("ulimit", True, _ulimit),
    "link": ("list", True, _link),
    "label": ("list", True, _label),
    "annotation": ("map", True, str),
    "device-rule": ("list", True, _device_rule),
    "weight-device": ("list", True, _weight_device),
    "bps-device": ("list", True, _bps_device),
    "iops-device": ("list", True, _iops_device),
    "gpus": ("gpu-request", True, _gpus),
    "mount": ("mount", True, parse_mount),
    "network": ("network", True, parse_network),
}

CREATE_FLAGS: tuple[Row, ...] = (
    ("add-host", "", "extra-host", "Add a custom host-to-IP mapping (host:ip)"),
    ("annotation", "", "annotation", "Add an annotation to the container (passed through to the OCI runtime)"),
    ("attach", "a", "stream", "Attach to STDIN, STDOUT or STDERR"),
    ("blkio-weight", "", "uint16", "Block IO (relative weight), between 10 and 1000, or 0 to disable"),
    ("blkio-weight-device", "", "weight-device", "Block IO weight (relative device weight)"),
    ("cap-add", "", "list", "Add Linux capabilities"),
    ("cap-drop", "", "list", "Drop Linux capabilities"),
    ("cgroup-parent", "", "string", "Optional parent cgroup for the container"),
    ("cgroupns", "", "string", "Cgroup namespace to use (host|private)"),
    ("cidfile", "", "string", "Write the container ID to the file"),
    ("cpu-count", "", "int", "CPU count (Windows only)"),
    ("cpu-percent", "", "int", "CPU percent (Windows only)"),
    ("cpu-period", "", "int", "Limit CPU CFS (Completely Fair Scheduler) period"),
    ("cpu-quota", "", "int", "Limit CPU CFS (Completely Fair Scheduler) quota"),
    ("cpu-rt-period", "", "int", "Limit CPU real-time period in microseconds"),
    ("cpu-rt-runtime", "", "int", "Limit CPU real-time runtime in microseconds"),
    ("cpu-shares", "c", "int", "CPU shares (relative weight)"),
    ("cpus", "", "decimal", "Number of CPUs"),
    ("cpuset-cpus", "", "string", "CPUs in which to allow execution (0-3, 0,1)"),
    ("cpuset-mems", "", "string", "MEMs in which to allow execution (0-3, 0,1)"),
    ("device", "", "list", "Add a host device to the container"),
    ("device-cgroup-rule", "", "device-rule", "Add a rule to the cgroup allowed devices list"),
    ("device-read-bps", "", "bps-device", "Limit read rate (bytes per second) from a device"),
    ("device-read-iops", "", "iops-device", "Limit read rate (IO per second) from a device"),
    ("device-write-bps", "", "bps-device", "Limit write rate (bytes per second) to a device"),
    ("device-write-iops", "", "iops-device", "Limit write rate (IO per second) to a device"),
    ("disable-content-trust", "", "bool", "Skip image verification", True),
    ("dns", "", "ip", "Set custom DNS servers"),
    ("dns-option", "", "list", "Set DNS options"),
    ("dns-search", "", "domain", "Set custom DNS search domains"),
    ("domainname", "", "string", "Container NIS domain name"),
    ("entrypoint", "", "string", "Overwrite the default ENTRYPOINT of the image"),
    ("env", "e", "env", "Set environment variables"),
    ("env-file", "", "list", "Read in a file of environment variables"),
    ("expose", "", "list", "Expose a port or a range of ports"),
    ("gpus", "", "gpus", "GPU devices to add to the container ('all' to pass all GPUs)"),
    ("group-add", "", "list", "Add additional groups to join"),
    ("health-cmd", "", "string", "Command to run to check health"),
    ("health-interval", "", "duration", "Time between running the check (ms|s|m|h)"),
    ("health-retries", "", "int", "Consecutive failures needed to report unhealthy"),
    ("health-start-interval", "", "duration", "Time between running the check during the start period (ms|s|m|h)"),
    (
        "health-start-period",
        "",
        "duration",
        "Start period for the container to initialize before starting health-retries countdown (ms|s|m|h)",
    ),
    ("health-timeout", "", "duration", "Maximum time to allow one check to run (ms|s|m|h)"),
    ("hostname", "h", "string", "Container host name"),
    ("init", "", "bool", "Run an init inside the container that forwards signals and reaps processes"),
    ("interactive", "i", "bool", "Keep STDIN open even if not attached"),
    ("io-maxbandwidth", "", "bytes", "Maximum IO bandwidth limit for the system drive (Windows only)"),
    ("io-maxiops", "", "int", "Maximum IOps limit for the system drive (Windows only)"),
    ("ip", "", "string", "IPv4 address (e.g., 172.30.100.104)"),
    ("ip6", "", "string", "IPv6 address (e.g., 2001:db8::33)"),
    ("ipc", "", "string", "IPC mode to use"),
    ("isolation", "", "string", "Container isolation technology"),
    ("kernel-memory", "", "bytes", "Kernel memory limit"),
    ("label", "l", "label", "Set meta data on a container"),
    ("label-file", "", "list", "Read in a line delimited file of labels"),
    ("link", "", "link", "Add link to another container"),
    ("link-local-ip", "", "list", "Container IPv4/IPv6 link-local addresses"),
    ("log-driver", "", "string", "Logging driver for the container"),
    ("log-opt", "", "list", "Log driver options"),
    ("mac-address", "", "string", "Container MAC address (e.g., 92:d0:c6:0a:29:33)"),
    ("memory", "m", "bytes", "Memory limit"),
    ("memory-reservation", "", "bytes", "Memory soft limit"),
    ("memory-swap", "", "swap", "Swap limit equal to memory plus swap: '-1' to enable unlimited swap"),
    ("memory-swappiness", "", "int", "Tune container memory swappiness (0 to 100)", -1),
    ("mount", "", "mount", "Attach a filesystem mount to the container"),
    ("name", "", "string", "Assign a name to the container"),
    ("network", "", "network", "Connect a container to a network"),
    ("network-alias", "", "list", "Add network-scoped alias for the container"),
    ("network-bandwidth", "", "string", "Limit bandwidth: RATE or RECEIVE/SEND, such as 10mbit"),
    ("no-healthcheck", "", "bool", "Disable any container-specified HEALTHCHECK"),
    ("oom-kill-disable", "", "bool", "Disable OOM Killer"),
    ("oom-score-adj", "", "int", "Tune host's OOM preferences (-1000 to 1000)"),
    ("pid", "", "string", "PID namespace to use"),
    ("pids-limit", "", "int", "Tune container pids limit (set -1 for unlimited)"),
    ("platform", "", "string", "Set platform if server is multi-platform capable"),
    ("privileged", "", "bool", "Give extended privileges to this container"),
    ("publish", "p", "list", "Publish a container's port(s) to the host"),
    ("publish-all", "P", "bool", "Publish all exposed ports to random ports"),
    ("pull", "", "string", 'Pull image before running ("always", "missing", "never")', "missing"),
    ("quiet", "q", "bool", "Suppress the pull output"),
    ("read-only", "", "bool", "Mount the container's root filesystem as read only"),
    ("restart", "", "string", "Restart policy to apply when a container exits", "no"),
    ("rm", "", "bool", "Automatically remove the container and its associated anonymous volumes when it exits"),
    ("runtime", "", "string", "Runtime to use for this container"),
    ("security-opt", "", "list", "Security Options"),
    ("shm-size", "", "bytes", "Size of /dev/shm"),
    ("stop-signal", "", "string", "Signal to stop the container"),
    ("stop-timeout", "", "int", "Timeout (in seconds) to stop a container"),
    ("storage-opt", "", "list", "Storage driver options for the container"),
    ("sysctl", "", "sysctl", "Sysctl options"),
    ("tmpfs", "", "list", "Mount a tmpfs directory"),
    ("tty", "t", "bool", "Allocate a pseudo-TTY"),
    ("ulimit", "", "ulimit", "Ulimit options"),
    ("user", "u", "string", "Username or UID (format: <name|uid>[:<group|gid>])"),
    ("use-api-socket", "", "bool", "Bind mount Docker API socket and required auth (refused)"),
    ("userns", "", "string", "User namespace to use"),
    ("uts", "", "string", "UTS namespace to use"),
    ("volume", "v", "list", "Bind mount a volume"),
    ("volume-driver", "", "string", "Optional volume driver for the container"),
    ("volumes-from", "", "list", "Mount volumes from the specified container(s)"),
    ("workdir", "w", "string", "Working directory inside the container"),
)
RUN_ONLY_FLAGS: tuple[Row, ...] = (
    ("detach", "d", "bool", "Run container in background and print container ID"),
    ("detach-keys", "", "string", "Override the key sequence for detaching a container"),
    ("sig-proxy", "", "bool", "Proxy received signals to the process", True),
)
