//! Whether a program looks at a register again that it passed a system call an argument in.
//!
//! The kernel leaves those registers as they are, and a compiler knows that: a loop around an inlined call may load its
//! time limit once and never again. So a register is changed only if the code after the call shows that nobody reads it: on
//! every way from there it is loaded anew, or the function returns, for to its caller it means nothing (System V ABI: all
//! registers of arguments belong to whoever is called). What cannot be followed counts as reading.

use iced_x86::{
    Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, OpAccess, Register,
};
use std::collections::HashSet;
use std::fs::File;
use std::os::unix::fs::FileExt;

/// No more instructions than this are followed.
const INSTRUCTIONS_MAX: usize = 400;
/// Calls within calls that are followed.
const DEPTH_MAX: usize = 3;
/// Bytes of the longest instruction.
const INSTRUCTION_BYTES_MAX: usize = 15;

/// The registers of arguments in the order in which system calls have them.
const REGISTERS: [Register; 6] = [
    Register::RDI,
    Register::RSI,
    Register::RDX,
    Register::R10,
    Register::R8,
    Register::R9,
];

/// A place in the code: the next instruction, and where the calls return to that lead there.
type CodePlace = (u64, Vec<u64>);

/// True if the register of argument `number` means nothing to the code from `address` on.
pub(super) fn is_unread(memory: &File, address: u64, number: usize) -> bool {
    let mut walk = Walk {
        memory,
        register: REGISTERS[number],
        open: vec![(address, Vec::new())],
        seen: HashSet::new(),
    };
    walk.run().is_some()
}

struct Walk<'a> {
    memory: &'a File,
    register: Register,
    open: Vec<CodePlace>,
    seen: HashSet<CodePlace>,
}

/// What an instruction does with a register.
#[derive(PartialEq, Eq)]
enum Use {
    Reads,
    Loads,
    Nothing,
}

impl Walk<'_> {
    /// `None` if it is read, or may be.
    fn run(&mut self) -> Option<()> {
        let mut factory = InstructionInfoFactory::new();
        while let Some(place) = self.open.pop() {
            if !self.seen.insert(place.clone()) {
                continue;
            }
            if self.seen.len() > INSTRUCTIONS_MAX {
                return None;
            }
            let (address, returns) = place;
            let instruction = self.decode(address)?;
            match self.use_in(&mut factory, &instruction) {
                Use::Reads => return None,
                Use::Loads => continue,
                Use::Nothing => self.follow(&instruction, returns)?,
            }
        }
        Some(())
    }

    fn decode(&self, address: u64) -> Option<Instruction> {
        let mut code = [0; INSTRUCTION_BYTES_MAX];
        let length = self.memory.read_at(&mut code, address).ok()?;
        let mut decoder = Decoder::with_ip(64, &code[..length], address, DecoderOptions::NONE);
        Some(decoder.decode()).filter(|instruction| !instruction.is_invalid())
    }

    fn use_in(&self, factory: &mut InstructionInfoFactory, instruction: &Instruction) -> Use {
        let mut all = Use::Nothing;
        for used in factory.info(instruction).used_registers() {
            if used.register().full_register() != self.register {
                continue;
            }
            // Writing 32 bits clears the others; writing 8 or 16 leaves them.
            let is_whole = used.register().size() >= 4;
            match used.access() {
                OpAccess::None | OpAccess::NoMemAccess => {}
                OpAccess::Write if is_whole => all = Use::Loads,
                OpAccess::Write | OpAccess::CondWrite => {}
                _ => return Use::Reads,
            }
        }
        all
    }

    /// Where the code goes on after an instruction.
    fn follow(&mut self, instruction: &Instruction, mut returns: Vec<u64>) -> Option<()> {
        // Of the registers of arguments, only this one is none of ordinary functions.
        let may_be_passed_on = self.register != Register::R10;
        let next = instruction.next_ip();
        match instruction.flow_control() {
            FlowControl::Next => self.open.push((next, returns)),
            FlowControl::UnconditionalBranch => {
                self.open.push((instruction.near_branch_target(), returns));
            }
            FlowControl::ConditionalBranch => {
                self.open
                    .push((instruction.near_branch_target(), returns.clone()));
                self.open.push((next, returns));
            }
            FlowControl::Return => {
                if let Some(back) = returns.pop() {
                    self.open.push((back, returns));
                }
            }
            FlowControl::Call if instruction.is_call_near() && returns.len() < DEPTH_MAX => {
                returns.push(next);
                self.open.push((instruction.near_branch_target(), returns));
            }
            // A function of another file, which may use the register as it likes.
            FlowControl::IndirectCall if !may_be_passed_on => {}
            FlowControl::IndirectBranch if !may_be_passed_on && !returns.is_empty() => {}
            // Other calls and jumps, and system calls.
            _ => return None,
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    /// Whether the code after a call leaves argument `number` unread; it stands at address 0 of a file.
    fn is_unread_in(code: &[u8], number: usize) -> bool {
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(code).expect("room");
        is_unread(&file, 0, number)
    }

    const R10: usize = 3;
    const RDX: usize = 2;

    #[test]
    fn a_function_that_returns_does_not_read() {
        // cmp $-4096, %rax; ja .+1; ret; neg %eax; ret
        let code = [
            0x48, 0x3d, 0, 0xf0, 0xff, 0xff, 0x77, 1, 0xc3, 0xf7, 0xd8, 0xc3,
        ];
        assert!(is_unread_in(&code, R10));
        assert!(is_unread_in(&code, RDX));
    }

    #[test]
    fn a_loop_that_loads_the_limit_once_reads() {
        // mov $232, %eax; syscall; jmp to the begin
        let code = [0xb8, 232, 0, 0, 0, 0x0f, 0x05, 0xeb, 0xf7];
        assert!(!is_unread_in(&code, R10));
        // mov $500, %r10d before that: it is loaded each time
        let code = [
            0x41, 0xba, 0xf4, 1, 0, 0, 0xb8, 232, 0, 0, 0, 0x0f, 0x05, 0xeb, 0xf1,
        ];
        assert!(is_unread_in(&code, R10));
    }

    #[test]
    fn one_way_of_two_that_reads_is_enough() {
        // jne .+1; ret; mov %r10, %rax; ret
        let code = [0x75, 1, 0xc3, 0x4c, 0x89, 0xd0, 0xc3];
        assert!(!is_unread_in(&code, R10));
        assert!(is_unread_in(&code, RDX));
        // mov %dl, ...: a part is read; mov $1, %dl: a part is loaded, which leaves the rest; mov %edx: all of it
        assert!(!is_unread_in(&[0x88, 0xd0, 0xc3], RDX));
        assert!(!is_unread_in(&[0xb2, 1, 0x48, 0x89, 0xd0, 0xc3], RDX));
        assert!(is_unread_in(
            &[0xba, 1, 0, 0, 0, 0x48, 0x89, 0xd0, 0xc3],
            RDX
        ));
    }

    #[test]
    fn functions_that_are_called_are_followed_and_what_comes_after_them() {
        // call .+1; ret; ret: the function reads nothing
        assert!(is_unread_in(&[0xe8, 1, 0, 0, 0, 0xc3, 0xc3], RDX));
        // call .+1; ret; mov %rdx, %rax; ret: it reads
        let code = [0xe8, 1, 0, 0, 0, 0xc3, 0x48, 0x89, 0xd0, 0xc3];
        assert!(!is_unread_in(&code, RDX));
        // call .+4; mov %rdx, %rax; ret; ret: its caller does
        let code = [0xe8, 4, 0, 0, 0, 0x48, 0x89, 0xd0, 0xc3, 0xc3];
        assert!(!is_unread_in(&code, RDX));
        // call *%rax; ret: an unknown function may take %rdx, never %r10
        assert!(!is_unread_in(&[0xff, 0xd0, 0xc3], RDX));
        assert!(is_unread_in(&[0xff, 0xd0, 0xc3], R10));
    }

    #[test]
    fn what_cannot_be_followed_reads() {
        assert!(!is_unread_in(&[0x90], R10), "the code ends");
        assert!(!is_unread_in(&[0xff, 0xe0], R10), "jmp *%rax");
        assert!(!is_unread_in(&[0x06], R10), "no instruction");
        assert!(
            !is_unread_in(&[0x90; INSTRUCTIONS_MAX + 1], R10),
            "too long"
        );
    }
}
