"""An assembler for classic BPF programs that are decision trees, as seccomp filters are.

The program is written from its end to its beginning: every jump goes forward, so a jump's targets exist before the jump does and
each distance is known at once. A *spot* is the number of instructions from a place to the program's end.

Conditional jumps reach 255 instructions. ``branch`` sees to it that both targets are near enough: a far return is written again
next to the jump, any other far target gets an unconditional jump in between.

Only loads, AND, jumps and returns are used. The kernel (5.11 on) can evaluate such a program in advance for each system call
number and then skips it altogether where the answer does not depend on arguments.

Followed: linux/filter.h, linux/bpf_common.h, bpf(4).
"""

from __future__ import annotations

import struct

LOAD = 0x20  # BPF_LD | BPF_W | BPF_ABS
AND = 0x54  # BPF_ALU | BPF_AND | BPF_K
JUMP = 0x05  # BPF_JMP | BPF_JA
JUMP_EQ = 0x15
JUMP_GT = 0x25
JUMP_GE = 0x35
RETURN = 0x06  # BPF_RET | BPF_K

MAX_INSTRUCTIONS = 4096
REACH = 255

INSTRUCTION = struct.Struct("=HBBI")


class Assembler:
    """A program under construction, last instruction first."""

    def __init__(self) -> None:
        self._reversed: list[tuple[int, int, int, int]] = []
        self._returns: dict[int, int] = {}
        self._value_at: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._reversed)

    def give_back(self, value: int) -> int:
        """``return value``; an earlier one is shared while it is near."""
        spot = self._returns.get(value)
        if spot is None or len(self) - spot >= REACH:
            spot = self._write(RETURN, 0, 0, value)
            self._returns[value] = spot
            self._value_at[spot] = value
        return spot

    def load(self, offset: int, then: int) -> int:
        """Load the 32-bit word at ``offset`` of the input, go on at ``then``."""
        return self._straight(LOAD, offset, then)

    def mask(self, bits: int, then: int) -> int:
        """AND what was loaded with ``bits``, go on at ``then``."""
        return self._straight(AND, bits, then)

    def branch(self, test: int, value: int, true: int, false: int) -> int:
        """Compare what was loaded with ``value`` (``JUMP_EQ``, ``JUMP_GT``, ``JUMP_GE``, unsigned)."""
        if true == false:
            return true
        while True:
            if len(self) - true - 1 >= REACH:
                true = self._nearer(true)
            elif len(self) - false - 1 >= REACH:
                false = self._nearer(false)
            else:
                return self._write(test, len(self) - true - 1, len(self) - false - 1, value)

    def program(self, start: int) -> bytes:
        """The finished program, beginning at ``start``, which must be the instruction written last."""
        if start != len(self) - 1:
            start = self._write(JUMP, 0, 0, len(self) - start - 1)
        return b"".join(INSTRUCTION.pack(*instruction) for instruction in reversed(self._reversed))

    def _nearer(self, spot: int) -> int:
        if spot in self._value_at:
            return self.give_back(self._value_at[spot])
        return self._write(JUMP, 0, 0, len(self) - spot - 1)

    def _straight(self, code: int, operand: int, then: int) -> int:
        if then != len(self) - 1:
            self._write(JUMP, 0, 0, len(self) - then - 1)
        return self._write(code, 0, 0, operand)

    def _write(self, code: int, true: int, false: int, operand: int) -> int:
        self._reversed.append((code, true, false, operand))
        return len(self._reversed) - 1
