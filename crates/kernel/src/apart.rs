//! A process of ours in which a computation runs on bytes that somebody else wrote, and which can do nothing else: it reads
//! a request, computes, writes the answer, and any other system call kills it. What takes it over has gained what it
//! computes, and nothing of ours.
//!
//! It is a copy of this process (clone(2) without CLONE_VM) with two pipes for descriptors, no capabilities, all signals
//! blocked, `no_new_privs`, and a filter that knows read(2), write(2) and exit(2): seccomp(2), Linux 3.17. Not the strict mode of
//! prctl(2), which a process that has a filter already, as in most containers, cannot enter. Bytes go through memory
//! that both have. Needs no privilege.

#![allow(unsafe_code)]

use nix::libc;
use rustix::pipe::{PipeFlags, pipe_with};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU8;

/// Descriptors of the process: where requests come from, and where answers go to.
const REQUESTS: RawFd = 0;
const ANSWERS: RawFd = 1;
/// What is held of the memory between requests is not more than about twice this.
const KEPT_BYTES: usize = 4 << 20;
/// What the kernel protects at once, on x86-64.
const PAGE_BYTES: usize = 4096;
/// The answer if there is no result.
const NOTHING: u64 = u64::MAX;

/// A process that computes, see the head of this file. Dropping this ends it; so does the end of this program.
#[derive(Debug)]
pub struct Apart {
    pid: i32,
    requests: OwnedFd,
    answers: OwnedFd,
    shared: Shared,
    has_ended: bool,
}

impl Apart {
    /// Starts a process that does `work` as often as it is asked, with an input of at most `input_bytes` and an output of at most
    /// `output_bytes`: how many bytes the output has, or `None` if the input is not sound. `work` must make no system call, which would
    /// kill the process, and allocate nothing, since another thread may hold the allocator's lock at this instant.
    ///
    /// # Errors
    ///
    /// Those of mmap(2), pipe(2) and clone(2). A kernel without seccomp(2) shows at the first request, when the process has ended.
    pub fn start(
        input_bytes: usize,
        output_bytes: usize,
        mut work: impl FnMut(&[u8], &mut [u8]) -> Option<usize>,
    ) -> io::Result<Self> {
        let filter = filter().map_err(io::Error::other)?;
        let mut shared = Shared::new(input_bytes, output_bytes)?;
        let (asked, requests) = pipe_with(PipeFlags::CLOEXEC)?;
        let (answers, answered) = pipe_with(PipeFlags::CLOEXEC)?;
        let mut before = 0;
        // It must not run the handlers of this program.
        crate::keeper::set_mask(&u64::MAX, Some(&mut before));
        // SAFETY: without CLONE_VM the child has a copy of all memory and goes on from here on a copy of the stack, which it
        // never leaves. Nothing else is asked for, so no other argument is looked at.
        let pid = unsafe { libc::syscall(libc::SYS_clone, 0, 0, 0, 0, 0) };
        if pid == 0 {
            let live = || live(&asked, &answered, &filter, &mut shared, &mut work);
            // What unwinds must not get into what is the parent's business.
            drop(catch_unwind(AssertUnwindSafe(live)));
            end();
        }
        let failed = io::Error::last_os_error();
        crate::keeper::set_mask(&before, None);
        if pid < 0 {
            return Err(failed);
        }
        Ok(Self {
            pid: i32::try_from(pid).unwrap_or(0),
            requests,
            answers,
            shared,
            has_ended: false,
        })
    }

    /// Its number.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Has it compute the output for `input`: how many bytes of `output` it has, or `None` if the input is not sound. Whatever is in
    /// `output` then is what the process says it is.
    ///
    /// # Errors
    ///
    /// The process has ended, now or before: by a system call that is not its business, or by a signal.
    pub fn run(&mut self, input: &[u8], output: &mut [u8]) -> io::Result<Option<usize>> {
        let mut put = |place: &mut [u8]| {
            place.copy_from_slice(input);
            Ok(())
        };
        self.run_there(input.len(), &mut put, output.len(), &mut |found| {
            let output = &mut output[..found.len()];
            crate::loose::copy(found, output);
        })
    }

    /// The same, without a copy: the input, `input_bytes` long, is put by `put` where the process reads it, and the output, at most
    /// `output_bytes` long, is only shown to `see`, where the process has put it. The process cannot change the input; it can still
    /// change the output.
    ///
    /// # Errors
    ///
    /// As above; and that of `put`, after which the process goes on.
    pub fn run_there(
        &mut self,
        input_bytes: usize,
        put: &mut dyn FnMut(&mut [u8]) -> io::Result<()>,
        output_bytes: usize,
        see: &mut dyn FnMut(&[AtomicU8]),
    ) -> io::Result<Option<usize>> {
        if self.has_ended {
            return Err(ended());
        }
        if input_bytes > self.shared.input_bytes || output_bytes > self.shared.output_bytes {
            return Err(ErrorKind::InvalidInput.into());
        }
        put(self.shared.input(input_bytes))?;
        let result = self.ask(input_bytes, output_bytes);
        self.has_ended = result.is_err();
        if let Ok(Some(length)) = result {
            see(self.shared.output(length));
        }
        if input_bytes.max(output_bytes) > KEPT_BYTES {
            self.shared.empty();
        }
        result
    }

    /// True if it computes no more.
    pub fn has_ended(&self) -> bool {
        self.has_ended
    }

    fn ask(&mut self, input_bytes: usize, output_bytes: usize) -> io::Result<Option<usize>> {
        let request = Request {
            input_bytes,
            output_bytes,
        };
        if !send(self.requests.as_raw_fd(), &request.to_bytes()) {
            return Err(ended());
        }
        let mut answer = [0; 8];
        if !receive(self.answers.as_raw_fd(), &mut answer) {
            return Err(ended());
        }
        match u64::from_ne_bytes(answer) {
            NOTHING => Ok(None),
            length => {
                let length = usize::try_from(length).unwrap_or(usize::MAX);
                if length <= output_bytes {
                    Ok(Some(length))
                } else {
                    Err(ended())
                }
            }
        }
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        crate::spawn::kill_and_reap(self.pid);
    }
}

fn ended() -> io::Error {
    io::Error::new(ErrorKind::BrokenPipe, "the process that computes has ended")
}

struct Request {
    input_bytes: usize,
    output_bytes: usize,
}

impl Request {
    fn to_bytes(&self) -> [u8; 16] {
        let numbers = [self.input_bytes as u128, self.output_bytes as u128];
        (numbers[0] | numbers[1] << 64).to_ne_bytes()
    }

    fn of_bytes(bytes: [u8; 16]) -> Self {
        let both = u128::from_ne_bytes(bytes);
        Self {
            input_bytes: both as u64 as usize,
            output_bytes: (both >> 64) as u64 as usize,
        }
    }
}

/// What the process may do: anything else kills it.
fn filter() -> Result<BpfProgram, seccompiler::BackendError> {
    let only = |descriptor: RawFd| {
        let number = u64::try_from(descriptor).unwrap_or(u64::MAX);
        let same = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, number)?;
        SeccompRule::new(vec![same])
    };
    let rules = [
        (libc::SYS_read, vec![only(REQUESTS)?]),
        (libc::SYS_write, vec![only(ANSWERS)?]),
        (libc::SYS_exit, Vec::new()),
    ];
    let filter = SeccompFilter::new(
        rules.into_iter().collect(),
        SeccompAction::KillProcess,
        SeccompAction::Allow,
        TargetArch::x86_64,
    )?;
    filter.try_into()
}

/// What the process does, to its end.
fn live(
    asked: &OwnedFd,
    answered: &OwnedFd,
    filter: &BpfProgram,
    shared: &mut Shared,
    work: &mut impl FnMut(&[u8], &mut [u8]) -> Option<usize>,
) {
    let confined = shared
        .let_input_be_read_only()
        .and_then(|()| confine(asked.as_raw_fd(), answered.as_raw_fd(), filter));
    if confined.is_none() {
        return;
    }
    let mut request = [0; 16];
    while receive(REQUESTS, &mut request) {
        let request = Request::of_bytes(request);
        let Some((input, output)) = shared.both(&request) else {
            return;
        };
        let answer = match work(input, output) {
            Some(length) => length as u64,
            None => NOTHING,
        };
        if !send(ANSWERS, &answer.to_ne_bytes()) {
            return;
        }
    }
}

/// Gives up all that the process has. `None` if that is not to be had.
fn confine(asked: RawFd, answered: RawFd, filter: &BpfProgram) -> Option<()> {
    let done = |result: libc::c_long| (result >= 0).then_some(());
    // Out of the way of the numbers they are to have. There may be no room for more descriptors.
    let move_up = |descriptor: RawFd| {
        if descriptor > ANSWERS {
            return Some(descriptor);
        }
        // SAFETY: the call takes numbers only.
        let moved = unsafe { libc::fcntl(descriptor, libc::F_DUPFD, 3) };
        (moved >= 0).then_some(moved)
    };
    let (asked, answered) = (move_up(asked)?, move_up(answered)?);
    for (from, to) in [(asked, REQUESTS), (answered, ANSWERS)] {
        // SAFETY: the call takes numbers only; nobody here uses what had the number.
        done(unsafe { libc::dup2(from, to) }.into())?;
    }
    // SAFETY: the call takes numbers only; nobody here uses what is closed.
    done(unsafe { libc::syscall(libc::SYS_close_range, ANSWERS + 1, u32::MAX, 0) })?;
    // Others of this user may not look into it, nor trace it.
    // SAFETY: the call takes numbers only.
    done(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0) }.into())?;
    crate::acting::give_up_capabilities().ok()?;
    // It sets `no_new_privs`, too.
    seccompiler::apply_filter(filter).ok()
}

fn end() -> ! {
    loop {
        // SAFETY: the call takes a number. The libc's would end all threads, which is another call.
        unsafe { libc::syscall(libc::SYS_exit, 0) };
    }
}

/// Writes all of `bytes`, which fit a pipe. False if nobody reads any more.
fn send(descriptor: RawFd, bytes: &[u8]) -> bool {
    loop {
        // SAFETY: the pointer leads to as many bytes, which are only read.
        let sent = unsafe { libc::write(descriptor, bytes.as_ptr().cast(), bytes.len()) };
        if sent >= 0 || io::Error::last_os_error().kind() != ErrorKind::Interrupted {
            return usize::try_from(sent) == Ok(bytes.len());
        }
    }
}

/// Fills `bytes`, which were written at once. False if nobody writes any more.
fn receive(descriptor: RawFd, bytes: &mut [u8]) -> bool {
    loop {
        // SAFETY: the pointer leads to as many bytes, which nobody else uses.
        let got = unsafe { libc::read(descriptor, bytes.as_mut_ptr().cast(), bytes.len()) };
        if got >= 0 || io::Error::last_os_error().kind() != ErrorKind::Interrupted {
            return usize::try_from(got) == Ok(bytes.len());
        }
    }
}

/// Memory that both processes have: a place for the input, and one for the output.
#[derive(Debug)]
struct Shared {
    at: NonNull<u8>,
    input_bytes: usize,
    output_bytes: usize,
}

// SAFETY: what is mapped belongs to no thread, and this process reaches it through `&mut Apart` only.
unsafe impl Send for Shared {}

impl Shared {
    fn new(input_bytes: usize, output_bytes: usize) -> io::Result<Self> {
        // The place for the output begins with a page of its own.
        let input_bytes = input_bytes.checked_next_multiple_of(PAGE_BYTES);
        let input_bytes = input_bytes.ok_or(ErrorKind::OutOfMemory)?;
        let length = input_bytes.checked_add(output_bytes);
        let length = length.ok_or(ErrorKind::OutOfMemory)?;
        // SAFETY: the kernel chooses a place where nothing is.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        match NonNull::new(at.cast::<u8>()) {
            Some(place) if at != libc::MAP_FAILED => Ok(Self {
                at: place,
                input_bytes,
                output_bytes,
            }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// The first so many bytes of the input.
    fn input(&mut self, length: usize) -> &mut [u8] {
        assert!(length <= self.input_bytes, "the input has a place");
        // SAFETY: the place for the input is as long, and mapped as long as `self` is there; no other reference to it exists here,
        // and the other process can only read it.
        unsafe { std::slice::from_raw_parts_mut(self.at.as_ptr(), length) }
    }

    /// In this process, from now on. `None` if that is not to be had.
    fn let_input_be_read_only(&mut self) -> Option<()> {
        let at = self.at.as_ptr().cast();
        // SAFETY: the place begins with a page and ends with one, and nobody here writes to it.
        let result = unsafe { libc::mprotect(at, self.input_bytes, libc::PROT_READ) };
        (result == 0).then_some(())
    }

    /// The first so many bytes of the output. The other process may still write there.
    fn output(&self, length: usize) -> &[AtomicU8] {
        assert!(length <= self.output_bytes, "the output has a place");
        // SAFETY: the place for the output begins there, in the mapping.
        let from = unsafe { self.at.add(self.input_bytes) };
        // SAFETY: it is as long, mapped as long as `self` is there, and written to by no reference of this process while `self`
        // is borrowed; what the other process writes atomics allow for.
        unsafe { std::slice::from_raw_parts(from.as_ptr().cast(), length) }
    }

    /// Gives back what it takes. If that fails, it is kept, and used again.
    fn empty(&mut self) {
        let length = self.input_bytes + self.output_bytes;
        // SAFETY: it is our mapping, and nobody has a reference into it here.
        unsafe { libc::madvise(self.at.as_ptr().cast(), length, libc::MADV_REMOVE) };
    }

    /// Input and output of a request, for the process that computes.
    fn both(&mut self, request: &Request) -> Option<(&[u8], &mut [u8])> {
        if request.input_bytes > self.input_bytes || request.output_bytes > self.output_bytes {
            return None;
        }
        // SAFETY: the place for the output begins there, in the mapping.
        let output = unsafe { self.at.add(self.input_bytes) };
        // SAFETY: it lies in the mapping. Whoever asks touches it no more until it is answered.
        let input = unsafe { std::slice::from_raw_parts(self.at.as_ptr(), request.input_bytes) };
        // SAFETY: the same; and this process has no other reference to it, since each is gone before the next request is read.
        let output =
            unsafe { std::slice::from_raw_parts_mut(output.as_ptr(), request.output_bytes) };
        Some((input, output))
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: it is our mapping, and nobody has a reference into it.
        unsafe {
            libc::munmap(
                self.at.as_ptr().cast(),
                self.input_bytes + self.output_bytes,
            )
        };
    }
}

#[cfg(test)]
mod tests;
