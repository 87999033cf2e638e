//! The smallest virtual machine: one processor in real mode that stores one byte and halts. KVM's
//! documentation: `Documentation/virt/kvm/api.rst`.

use super::{PAGE, Region};
use nix::libc;
use rustix::ioctl::{Opcode, opcode};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

const KVM_CREATE_VM: Opcode = opcode::none(0xAE, 0x01);
const KVM_GET_VCPU_MMAP_SIZE: Opcode = opcode::none(0xAE, 0x04);
const KVM_CREATE_VCPU: Opcode = opcode::none(0xAE, 0x41);
const KVM_SET_USER_MEMORY_REGION: Opcode = opcode::write::<[u64; 4]>(0xAE, 0x46);
const KVM_RUN: Opcode = opcode::none(0xAE, 0x80);
const KVM_SET_REGS: Opcode = opcode::write::<[u64; 18]>(0xAE, 0x82);
const KVM_GET_SREGS: Opcode = opcode::read::<[u64; 39]>(0xAE, 0x83);
const KVM_SET_SREGS: Opcode = opcode::write::<[u64; 39]>(0xAE, 0x84);

/// The reason of an exit: the guest has halted.
const EXIT_HLT: u32 = 5;

/// A machine whose memory is a region.
pub struct Guest {
    _machine: OwnedFd,
    processor: OwnedFd,
    run: Region,
}

fn call(fd: &impl AsRawFd, code: Opcode, argument: *mut libc::c_void) -> io::Result<i32> {
    // SAFETY: every caller passes what the request takes: a number, or a struct of the encoded size.
    let answer = unsafe { libc::ioctl(fd.as_raw_fd(), libc::c_ulong::from(code), argument) };
    match answer {
        -1 => Err(io::Error::last_os_error()),
        answer => Ok(answer),
    }
}

fn owned(fd: i32) -> OwnedFd {
    // SAFETY: the request has just made it, and nobody else has it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

impl Guest {
    /// A machine whose memory, from address 0 on, is `memory`.
    pub fn of(memory: &Region) -> io::Result<Self> {
        let null = std::ptr::null_mut();
        let kvm = File::options().read(true).write(true).open("/dev/kvm")?;
        let machine = owned(call(&kvm, KVM_CREATE_VM, null)?);
        // Slot and flags, guest address, length, address here.
        let length = memory.end() - memory.start();
        let mut slot = [0u64, 0, length, memory.start()];
        call(
            &machine,
            KVM_SET_USER_MEMORY_REGION,
            slot.as_mut_ptr().cast(),
        )?;
        let processor = owned(call(&machine, KVM_CREATE_VCPU, null)?);
        let length = call(&kvm, KVM_GET_VCPU_MMAP_SIZE, null)?;
        let file = File::from(processor.try_clone()?);
        let run = Region::map_anywhere(usize::try_from(length).expect("a length"), &file, 0)?;
        // Code segment 0: the first two words of it are base and limit and selector.
        let mut special = [0u64; 39];
        call(&processor, KVM_GET_SREGS, special.as_mut_ptr().cast())?;
        special[0] = 0;
        special[1] &= !0xffff_0000_0000;
        call(&processor, KVM_SET_SREGS, special.as_mut_ptr().cast())?;
        Ok(Self {
            _machine: machine,
            processor,
            run,
        })
    }

    /// Runs the code at page `code` of its memory until it halts.
    pub fn run(&self, code: usize) -> io::Result<()> {
        let mut registers = [0u64; 18];
        // rip and rflags are the last two; bit 1 of the flags is always set.
        registers[16] = (code * PAGE) as u64;
        registers[17] = 2;
        call(&self.processor, KVM_SET_REGS, registers.as_mut_ptr().cast())?;
        call(&self.processor, KVM_RUN, std::ptr::null_mut())?;
        match self.run.observe(8) {
            EXIT_HLT => Ok(()),
            reason => Err(io::Error::other(format!("the guest stopped: {reason}"))),
        }
    }
}
