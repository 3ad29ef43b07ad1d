"""The default seccomp profile, in the spirit of Docker's: an allow-list that ordinary programs never notice.

What it keeps out: calls that reach beyond a container or that have been doors to the kernel (mounts, modules, keyrings, namespaces,
io_uring, userfaultfd, bpf, perf), unless the container has the capability that guards the call anyway. Facts that shape it:

- clone(2) is allowed without namespace flags. clone3(2) hides its flags behind a pointer, where a filter cannot see them: it
  answers ENOSYS, and every C library falls back to clone.
- socket(2) is allowed family by family. The kernel reads only 32 bits of the family while a filter sees 64, so an upper bound with
  "greater than" would let 2^32 + 38 pass as 38: all tests are exact or bounded from above.
- personality(2) may ask and may set the two plain domains, with and without the 2.6 version name.
- ptrace(2) of one's own processes is safe from Linux 4.8 on (before, it could step around the filter).

``from_docker_json`` resolves Docker's profile file format, which adds conditions on capabilities, architecture and kernel to the OCI
object; its rules are those of Docker's documentation and of its published profile.

Both give an OCI ``linux.seccomp`` object; ``compiled`` turns one into a program and remembers the latest.
"""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Collection, Mapping
from functools import lru_cache
from typing import Any

from tare.linux import seccomp

ALLOW = "SCMP_ACT_ALLOW"
REFUSE = "SCMP_ACT_ERRNO"

ALWAYS = """
accept accept4 access adjtimex alarm bind brk cachestat capget capset chdir chmod chown chown32 clock_adjtime
clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64 clock_nanosleep
clock_nanosleep_time64 close close_range connect copy_file_range creat dup dup2 dup3 epoll_create epoll_create1
epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2 execve execveat exit
exit_group faccessat faccessat2 fadvise64 fadvise64_64 fallocate fanotify_mark fchdir fchmod fchmodat fchmodat2
fchown fchown32 fchownat fcntl fcntl64 fdatasync fgetxattr flistxattr flock fork fremovexattr fsetxattr fstat
fstat64 fstatat64 fstatfs fstatfs64 fsync ftruncate ftruncate64 futex futex_requeue futex_time64 futex_wait
futex_waitv futex_wake futimesat get_robust_list get_thread_area getcpu getcwd getdents getdents64 getegid getegid32
geteuid geteuid32 getgid getgid32 getgroups getgroups32 getitimer getpeername getpgid getpgrp getpid getppid
getpriority getrandom getresgid getresgid32 getresuid getresuid32 getrlimit getrusage getsid getsockname getsockopt
gettid gettimeofday getuid getuid32 getxattr getxattrat inotify_add_watch inotify_init inotify_init1
inotify_rm_watch io_cancel io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup io_submit ioctl
ioprio_get ioprio_set ipc kill landlock_add_rule landlock_create_ruleset landlock_restrict_self lchown lchown32
lgetxattr link linkat listen listmount listxattr listxattrat llistxattr _llseek lremovexattr lseek lsetxattr lstat
lstat64 madvise map_shadow_stack membarrier memfd_create memfd_secret mincore mkdir mkdirat mknod mknodat mlock
mlock2 mlockall mmap mmap2 mprotect mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64
mq_timedsend mq_timedsend_time64 mq_unlink mremap mseal msgctl msgget msgrcv msgsnd msync munlock munlockall munmap
name_to_handle_at nanosleep newfstatat _newselect open openat openat2 pause pidfd_open pidfd_send_signal pipe pipe2
pkey_alloc pkey_free pkey_mprotect poll ppoll ppoll_time64 prctl pread64 preadv preadv2 prlimit64 process_mrelease
pselect6 pselect6_time64 pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv recv recvfrom recvmmsg
recvmmsg_time64 recvmsg remap_file_pages removexattr removexattrat rename renameat renameat2 restart_syscall
riscv_hwprobe rmdir rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend
rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo sched_get_priority_max sched_get_priority_min
sched_getaffinity sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time64
sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield seccomp select semctl semget semop
semtimedop semtimedop_time64 send sendfile sendfile64 sendmmsg sendmsg sendto set_robust_list set_thread_area
set_tid_address setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups setgroups32 setitimer setpgid
setpriority setregid setregid32 setresgid setresgid32 setresuid setresuid32 setreuid setreuid32 setrlimit setsid
setsockopt setuid setuid32 setxattr setxattrat shmat shmctl shmdt shmget shutdown sigaltstack signalfd signalfd4
sigprocmask sigreturn socketcall socketpair splice stat stat64 statfs statfs64 statmount statx symlink symlinkat
sync sync_file_range syncfs sysinfo tee tgkill time timer_create timer_delete timer_getoverrun timer_gettime
timer_gettime64 timer_settime timer_settime64 timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime
timerfd_settime64 times tkill truncate truncate64 ugetrlimit umask uname unlink unlinkat uretprobe utime utimensat
utimensat_time64 utimes vfork vmsplice wait4 waitid waitpid write writev
"""

WITH_CAPABILITY = {
    "CAP_DAC_READ_SEARCH": "open_by_handle_at",
    "CAP_SYS_ADMIN": """
        bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie lsm_get_self_attr lsm_list_modules
        lsm_set_self_attr mount mount_setattr move_mount open_tree perf_event_open quotactl quotactl_fd setdomainname sethostname
        setns syslog umount umount2 unshare
    """,
    "CAP_SYS_BOOT": "reboot",
    "CAP_SYS_CHROOT": "chroot",
    "CAP_SYS_MODULE": "delete_module init_module finit_module",
    "CAP_SYS_PACCT": "acct",
    "CAP_SYS_PTRACE": "kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev ptrace",
    "CAP_SYS_RAWIO": "iopl ioperm",
    "CAP_SYS_TIME": "settimeofday stime clock_settime clock_settime64",
    "CAP_SYS_TTY_CONFIG": "vhangup",
    "CAP_SYS_NICE": "get_mempolicy mbind set_mempolicy set_mempolicy_home_node",
    "CAP_SYSLOG": "syslog",
    "CAP_BPF": "bpf",
    "CAP_PERFMON": "perf_event_open",
}

ON_ARCH = {
    "x86_64": "arch_prctl modify_ldt",
    "i386": "modify_ldt",
    "aarch64": "arm_fadvise64_64 arm_sync_file_range sync_file_range2 breakpoint cacheflush set_tls",
    "arm": "arm_fadvise64_64 arm_sync_file_range sync_file_range2 breakpoint cacheflush set_tls",
}

FAMILIES = {"x86_64": ("X86_64", "X86", "X32"), "i386": ("X86",), "aarch64": ("AARCH64", "ARM"), "arm": ("ARM",)}

PTRACE_SAFE_FROM = (4, 8)
PTRACE = "process_vm_readv process_vm_writev ptrace"

# Socket families (linux/socket.h). Out are DECnet 12, IrDA 23, CAIF 37, the kernel crypto API 38 and vsock 40, and unassigned ones.
FAMILIES_BELOW = 12
FAMILIES_EXACTLY = (*range(13, 19), 21, 22, 24, *range(26, 34), 35, 36, 39, *range(41, 46))

CLONE_NAMESPACES = 0x7E020000  # mnt, cgroup, uts, ipc, user, pid, net
PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)  # Linux, Linux32, each with UNAME26; the last one asks


def default_profile(capabilities: Collection[str], kernel: tuple[int, int], arch: str) -> dict[str, Any]:
    """The default profile for a process with this bounding set (``CAP_...`` names) on this kernel (major, minor).

    ``arch`` is the machine's name as in ``uname -m`` (``x86_64``, ``i386``, ``aarch64``, ``arm``).
    """
    held = set(capabilities)
    names = ALWAYS.split() + ON_ARCH.get(arch, "").split()
    for capability, calls in WITH_CAPABILITY.items():
        if capability in held:
            names += calls.split()
    if kernel >= PTRACE_SAFE_FROM:
        names += PTRACE.split()
    rules = [_rule(list(dict.fromkeys(names)))]
    rules.append(_rule(["socket"], _test("LT", FAMILIES_BELOW)))
    rules += [_rule(["socket"], _test("EQ", family)) for family in FAMILIES_EXACTLY]
    rules += [_rule(["personality"], _test("EQ", value)) for value in PERSONALITIES]
    if "CAP_SYS_ADMIN" not in held:
        rules.append(_rule(["clone"], _test("MASKED_EQ", CLONE_NAMESPACES)))
        rules.append({"names": ["clone3"], "action": REFUSE, "errnoRet": errno.ENOSYS})
    return {
        "defaultAction": REFUSE,
        "defaultErrnoRet": errno.EPERM,
        "architectures": [f"SCMP_ARCH_{family}" for family in FAMILIES.get(arch, ())],
        "syscalls": rules,
    }


def _rule(names: list[str], *tests: dict[str, Any]) -> dict[str, Any]:
    rule: dict[str, Any] = {"names": names, "action": ALLOW}
    return rule | {"args": list(tests)} if tests else rule


def _test(operator: str, value: int) -> dict[str, Any]:
    """A test of the first argument."""
    return {"index": 0, "op": f"SCMP_CMP_{operator}", "value": value}


# Go's names, which Docker's format uses in its conditions.
_GO_ARCH = {"x86_64": "amd64", "i386": "386", "aarch64": "arm64", "arm": "arm"}
_NATIVE = {"x86_64": "SCMP_ARCH_X86_64", "i386": "SCMP_ARCH_X86", "aarch64": "SCMP_ARCH_AARCH64", "arm": "SCMP_ARCH_ARM"}
_COPIED = ("action", "errnoRet", "args")


def from_docker_json(document: Mapping[str, Any], capabilities: Collection[str], kernel: tuple[int, int], arch: str) -> dict[str, Any]:
    """Docker's profile file format, resolved for a process with this bounding set on this kernel and machine.

    Raises ValueError, in words for the user, for a document that is not such a profile.
    """
    if not isinstance(document, Mapping) or not isinstance(document.get("defaultAction"), str):
        raise ValueError("seccomp profile has no defaultAction")
    profile: dict[str, Any] = {"defaultAction": document["defaultAction"]}
    profile |= {key: document[key] for key in ("defaultErrnoRet", "flags") if document.get(key) is not None}
    profile["architectures"] = _resolve_architectures(document, arch)
    profile["syscalls"] = [
        {"names": _rule_names(rule)} | {key: rule[key] for key in _COPIED if rule.get(key) is not None}
        for rule in _listed(document, "syscalls")
        if _applies(rule, capabilities, kernel, _GO_ARCH.get(arch, arch))
    ]
    try:
        compiled(profile, arch)
        seccomp.filter_flags(profile)
    except OSError as error:
        raise ValueError(f"seccomp profile: {error.strerror}: {error.filename}") from None
    return profile


def _listed(document: Mapping[str, Any], key: str) -> list[Any]:
    """A list of the document that may be absent or null."""
    value = document.get(key)
    if value is None:
        return []
    if not isinstance(value, list):
        raise ValueError(f"seccomp profile: {key} is not a list")
    return value


def _resolve_architectures(document: Mapping[str, Any], arch: str) -> list[str]:
    listed, mapped = _listed(document, "architectures"), _listed(document, "archMap")
    if listed and mapped:
        raise ValueError("use either architectures or archMap in the seccomp profile, not both")
    for entry in mapped:
        if not isinstance(entry, Mapping):
            raise ValueError("seccomp profile: archMap has an entry that is not an object")
        if entry.get("architecture") == _NATIVE.get(arch):
            return [entry["architecture"], *_listed(entry, "subArchitectures")]
    return listed


def _rule_names(rule: Mapping[str, Any]) -> list[str]:
    names = _listed(rule, "names")
    if rule.get("name"):
        if names:
            raise ValueError("use either name or names in a rule of the seccomp profile, not both")
        names = [rule["name"]]
    if not all(isinstance(name, str) for name in names):
        raise ValueError("seccomp profile: names of a rule are not all strings")
    return names


def _applies(rule: object, capabilities: Collection[str], kernel: tuple[int, int], go_arch: str) -> bool:
    """Whether the rule's ``includes`` all hold and none of its ``excludes`` does."""
    if not isinstance(rule, Mapping):
        raise ValueError("seccomp profile: syscalls has an entry that is not an object")
    includes, excludes = rule.get("includes") or {}, rule.get("excludes") or {}
    if not isinstance(includes, Mapping) or not isinstance(excludes, Mapping):
        raise ValueError("seccomp profile: includes and excludes of a rule are objects")
    wanted_arches = _listed(includes, "arches")
    if (wanted_arches and go_arch not in wanted_arches) or go_arch in _listed(excludes, "arches"):
        return False
    if not all(name in capabilities for name in _listed(includes, "caps")):
        return False
    if any(name in capabilities for name in _listed(excludes, "caps")):
        return False
    lowest, forbidden = includes.get("minKernel"), excludes.get("minKernel")
    if lowest and kernel < _kernel_version(lowest):
        return False
    return not (forbidden and kernel >= _kernel_version(forbidden))


def _kernel_version(text: object) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,9})\.(\d{1,9})", str(text))
    if match is None:
        raise ValueError(f"seccomp profile: minKernel is not MAJOR.MINOR: {text}")
    return int(match[1]), int(match[2])


def compiled(profile: Mapping[str, Any], arch: str | None = None) -> bytes:
    """The program for an OCI ``linux.seccomp`` object; the same profile is compiled once. Raises as ``seccomp.compile``."""
    return _compiled(json.dumps(profile, sort_keys=True), arch)


@lru_cache(maxsize=32)
def _compiled(profile: str, arch: str | None) -> bytes:
    return seccomp.compile(json.loads(profile), arch)
