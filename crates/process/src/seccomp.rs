//! Would the target's seccomp filters let a call pass? Asked before the call is made, because the
//! answer of the kernel could be to kill the target.
//!
//! A small interpreter of classic BPF, as far as seccomp has it (`seccomp(2)`,
//! `Documentation/userspace-api/seccomp_filter.rst`). It runs programs that the kernel has already
//! checked; anything it does not know counts as forbidden.

use pagetide_kernel::ptrace::FilterInstruction;

const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
const ACTION_MASK: u32 = 0xffff_0000;
const ACTION_ALLOW: u32 = 0x7fff_0000;
const ACTION_LOG: u32 = 0x7ffc_0000;
/// SECCOMP_RET_KILL_PROCESS
const ACTION_KILL: u32 = 0x8000_0000;

/// `struct seccomp_data`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CallData {
    pub(crate) number: i32,
    /// The address behind the `syscall` instruction.
    pub(crate) instruction_pointer: u64,
    pub(crate) args: [u64; 6],
}

impl CallData {
    /// The 32-bit word at a byte offset.
    fn word(&self, offset: u32) -> Option<u32> {
        let halves = |value: u64| [low(value), low(value >> 32)];
        let mut words = vec![self.number.cast_unsigned(), AUDIT_ARCH_X86_64];
        words.extend(halves(self.instruction_pointer));
        words.extend(self.args.iter().flat_map(|arg| halves(*arg)));
        if !offset.is_multiple_of(4) {
            return None;
        }
        words.get(usize::try_from(offset / 4).ok()?).copied()
    }
}

fn low(value: u64) -> u32 {
    (value & 0xffff_ffff) as u32
}

/// Whether all filters let the call pass without a side effect: the most restrictive one decides.
pub(crate) fn allows(filters: &[Vec<FilterInstruction>], call: &CallData) -> bool {
    filters.iter().all(|filter| {
        let action = run(filter, call).unwrap_or(ACTION_KILL) & ACTION_MASK;
        action == ACTION_ALLOW || action == ACTION_LOG
    })
}

/// The filter's answer; `None` if the program does what seccomp programs cannot do.
fn run(program: &[FilterInstruction], call: &CallData) -> Option<u32> {
    let mut accumulator = 0u32;
    let mut index = 0u32;
    let mut scratch = [0u32; 16];
    let mut at = 0usize;
    // Jumps go forward only, so no program takes more steps than it has instructions.
    loop {
        let instruction = program.get(at)?;
        at += 1;
        let operand = instruction.operand;
        let slot = usize::try_from(operand).ok()?;
        match instruction.code {
            0x20 => accumulator = call.word(operand)?,     // ld [k]
            0x80 => accumulator = 64,                      // ld len
            0x81 => index = 64,                            // ldx len
            0x00 => accumulator = operand,                 // ld #k
            0x01 => index = operand,                       // ldx #k
            0x60 => accumulator = *scratch.get(slot)?,     // ld M[k]
            0x61 => index = *scratch.get(slot)?,           // ldx M[k]
            0x02 => *scratch.get_mut(slot)? = accumulator, // st
            0x03 => *scratch.get_mut(slot)? = index,       // stx
            0x07 => index = accumulator,                   // tax
            0x87 => accumulator = index,                   // txa
            0x06 => return Some(operand),                  // ret #k
            0x16 => return Some(accumulator),              // ret a
            0x05 => at = at.checked_add(slot)?,            // ja
            code if code & 0x07 == 0x05 => {
                let right = if code & 0x08 == 0 { operand } else { index };
                let taken = compare(code & 0xf0, accumulator, right)?;
                let jump = if taken {
                    instruction.jump_true
                } else {
                    instruction.jump_false
                };
                at += usize::from(jump);
            }
            code if code & 0x07 == 0x04 => {
                let right = if code & 0x08 == 0 { operand } else { index };
                accumulator = arithmetic(code & 0xf0, accumulator, right)?;
            }
            _ => return None,
        }
    }
}

fn compare(operation: u16, left: u32, right: u32) -> Option<bool> {
    match operation {
        0x10 => Some(left == right),
        0x20 => Some(left > right),
        0x30 => Some(left >= right),
        0x40 => Some(left & right != 0),
        _ => None,
    }
}

fn arithmetic(operation: u16, left: u32, right: u32) -> Option<u32> {
    match operation {
        0x00 => Some(left.wrapping_add(right)),
        0x10 => Some(left.wrapping_sub(right)),
        0x20 => Some(left.wrapping_mul(right)),
        // The kernel ends a program that divides by zero with 0, which kills.
        0x30 => left.checked_div(right),
        0x40 => Some(left | right),
        0x50 => Some(left & right),
        0x60 => Some(left.checked_shl(right).unwrap_or(0)),
        0x70 => Some(left.checked_shr(right).unwrap_or(0)),
        0x80 => Some(left.wrapping_neg()),
        0xa0 => Some(left ^ right),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::{ACTION_ALLOW, ACTION_KILL, ACTION_LOG, CallData, allows};
    use pagetide_kernel::ptrace::FilterInstruction;

    fn instruction(code: u16, operand: u32, jump_true: u8, jump_false: u8) -> FilterInstruction {
        FilterInstruction {
            code,
            jump_true,
            jump_false,
            operand,
        }
    }

    fn call(number: i32, args: [u64; 6]) -> CallData {
        CallData {
            number,
            instruction_pointer: 0x7fff_1234_5678_9abc,
            args,
        }
    }

    /// Kills call 323, answers `otherwise` to all others.
    fn all_but_323(otherwise: u32) -> Vec<FilterInstruction> {
        vec![
            instruction(0x20, 0, 0, 0),
            instruction(0x15, 323, 0, 1),
            instruction(0x06, ACTION_KILL, 0, 0),
            instruction(0x06, otherwise, 0, 0),
        ]
    }

    #[test]
    fn the_most_restrictive_filter_decides() {
        let lenient = vec![instruction(0x06, ACTION_ALLOW, 0, 0)];
        let strict = all_but_323(ACTION_LOG);
        let filters = [lenient.clone(), strict, lenient];
        assert!(!allows(&filters, &call(323, [0; 6])));
        assert!(allows(&filters, &call(39, [0; 6])));
    }

    #[test]
    fn errno_trap_trace_and_notify_count_as_forbidden() {
        for action in [0u32, 0x0003_0000, 0x0005_0001, 0x7fc0_0000, 0x7ff0_0000] {
            let filters = [all_but_323(action)];
            assert!(!allows(&filters, &call(39, [0; 6])), "action {action:#x}");
        }
    }

    #[test]
    fn arguments_are_read_as_two_little_endian_words() {
        // Allows only if the upper half of the third argument is 7 and the architecture is right.
        let filter = vec![
            instruction(0x20, 4, 0, 0),
            instruction(0x15, 0xc000_003e, 0, 3),
            instruction(0x20, 16 + 2 * 8 + 4, 0, 0),
            instruction(0x15, 7, 0, 1),
            instruction(0x06, ACTION_ALLOW, 0, 0),
            instruction(0x06, ACTION_KILL, 0, 0),
        ];
        let with_third = |third| call(1, [0, 0, third, 0, 0, 0]);
        assert!(allows(std::slice::from_ref(&filter), &with_third(7 << 32)));
        assert!(!allows(std::slice::from_ref(&filter), &with_third(7)));
    }

    #[test]
    fn arithmetic_memory_and_index_work_as_in_the_kernel() {
        // ((nr + 5) * 3 & 0xff) kept in M[3], taken to X, compared with A.
        let filter = vec![
            instruction(0x20, 0, 0, 0),
            instruction(0x04, 5, 0, 0),
            instruction(0x24, 3, 0, 0),
            instruction(0x54, 0xff, 0, 0),
            instruction(0x02, 3, 0, 0),
            instruction(0x61, 3, 0, 0),
            instruction(0x00, 45, 0, 0),
            instruction(0x1d, 0, 0, 1),
            instruction(0x06, ACTION_ALLOW, 0, 0),
            instruction(0x06, ACTION_KILL, 0, 0),
        ];
        assert!(allows(std::slice::from_ref(&filter), &call(10, [0; 6])));
        assert!(!allows(std::slice::from_ref(&filter), &call(11, [0; 6])));
    }

    #[test]
    fn a_program_that_makes_no_sense_forbids() {
        for program in [
            vec![],
            vec![
                instruction(0x20, 2, 0, 0),
                instruction(0x06, ACTION_ALLOW, 0, 0),
            ],
            vec![
                instruction(0x34, 0, 0, 0),
                instruction(0x06, ACTION_ALLOW, 0, 0),
            ],
            vec![instruction(0xffff, 0, 0, 0)],
        ] {
            assert!(!allows(&[program], &call(39, [0; 6])));
        }
    }
}
