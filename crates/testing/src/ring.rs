//! An io_uring driven by raw system calls: just enough to let the kernel write to memory in the ways
//! that no page fault tells of.

use super::{PAGE, Region};
use nix::libc;
use rustix::io_uring::{
    IORING_OFF_SQ_RING, IORING_OFF_SQES, IoringEnterFlags, IoringOp, IoringRegisterOp,
    IoringSetupFlags, IoringSqeFlags, buf_union, io_uring_buf_reg, io_uring_enter, io_uring_params,
    io_uring_register, io_uring_setup, io_uring_sqe,
};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

/// A ring with room for a few requests.
pub struct Ring {
    fd: OwnedFd,
    parameters: io_uring_params,
    /// Submission and completion queue: mapped from the ring, or memory that was handed in.
    pub rings: Region,
    /// The requests.
    pub requests: Region,
    sent: u32,
}

const ENTRIES: u32 = 4;

impl Ring {
    /// A ring whose queues are mapped from it, as usual.
    pub fn new() -> io::Result<Self> {
        Self::with(IoringSetupFlags::empty())
    }

    /// The same, which only the thread that makes it may use (IORING_SETUP_SINGLE_ISSUER).
    pub fn for_one_thread() -> io::Result<Self> {
        Self::with(IoringSetupFlags::SINGLE_ISSUER)
    }

    fn with(flags: IoringSetupFlags) -> io::Result<Self> {
        let mut parameters = io_uring_params::default();
        parameters.flags = flags;
        // SAFETY: the parameters are valid, and name no memory.
        let fd = unsafe { io_uring_setup(ENTRIES, &mut parameters) }?;
        let file = File::from(fd);
        let map = |offset| Region::map_anywhere(PAGE, &file, offset);
        let rings = map(IORING_OFF_SQ_RING as usize)?;
        let requests = map(IORING_OFF_SQES as usize)?;
        let fd = OwnedFd::from(file);
        Ok(Self {
            fd,
            parameters,
            rings,
            requests,
            sent: 0,
        })
    }

    /// A ring whose queues lie in private memory of this process (IORING_SETUP_NO_MMAP).
    pub fn in_own_memory() -> io::Result<Self> {
        let rings = Region::filled(1, 0);
        let requests = Region::filled(1, 0);
        let mut parameters = io_uring_params::default();
        parameters.flags = IoringSetupFlags::NO_MMAP;
        parameters.cq_off.user_addr.ptr = rings.start() as *mut _;
        parameters.sq_off.user_addr.ptr = requests.start() as *mut _;
        // SAFETY: both areas are a page, which is enough for so few entries, and outlive the ring,
        // because the struct drops its fd first.
        let fd = unsafe { io_uring_setup(ENTRIES, &mut parameters) }?;
        Ok(Self {
            fd,
            parameters,
            rings,
            requests,
            sent: 0,
        })
    }

    /// Registers `pages` of `region` as fixed buffer 0.
    pub fn register_buffer(
        &self,
        region: &Region,
        pages: std::ops::Range<usize>,
    ) -> io::Result<()> {
        let buffer = libc::iovec {
            iov_base: region.address(pages.start) as *mut _,
            iov_len: pages.len() * PAGE,
        };
        let one = (&raw const buffer).cast();
        // SAFETY: one iovec, of memory that stays mapped until the ring is closed.
        unsafe { io_uring_register(&self.fd, IoringRegisterOp::RegisterBuffers, one, 1) }?;
        Ok(())
    }

    /// Stores into page `page` of `region` a ring of one buffer, the pages behind it up to `end`.
    pub fn lay_out_buffer(region: &Region, page: usize, end: usize) {
        region.fill(page..page + 1, 0);
        // The first entry: address, length, number of the buffer; in the last two bytes of it, the tail of the ring.
        let length = u32::try_from((end - page - 1) * PAGE).expect("length");
        let mut entry = [0; 16];
        entry[..8].copy_from_slice(&region.address(page + 1).to_ne_bytes());
        entry[8..12].copy_from_slice(&length.to_ne_bytes());
        region.store_bytes(page * PAGE, &entry);
        region.publish(page * PAGE + 12, 1 << 16);
    }

    /// Has buffers of `group` taken from the ring in page `page` of `region`. The kernel takes of a buffer what it needs, and
    /// writes into the ring what is left (IOU_PBUF_RING_INC).
    pub fn provide_buffers(&self, group: u16, region: &Region, page: usize) -> io::Result<()> {
        const ONE_AFTER_THE_OTHER: u16 = 2;
        let mut wanted = io_uring_buf_reg::default();
        wanted.ring_addr.ptr = region.address(page) as *mut _;
        (wanted.ring_entries, wanted.bgid, wanted.flags) = (8, group, ONE_AFTER_THE_OTHER);
        let one = (&raw const wanted).cast();
        // SAFETY: one description of a ring, in memory that stays mapped until the io_uring is closed.
        unsafe { io_uring_register(&self.fd, IoringRegisterOp::RegisterPbufRing, one, 1) }?;
        Ok(())
    }

    /// The buffers of `group` come from a ring no more.
    pub fn provide_no_more(&self, group: u16) -> io::Result<()> {
        let mut wanted = io_uring_buf_reg::default();
        wanted.bgid = group;
        let one = (&raw const wanted).cast();
        // SAFETY: one description of a ring, which names no memory.
        unsafe { io_uring_register(&self.fd, IoringRegisterOp::UnregisterPbufRing, one, 1) }?;
        Ok(())
    }

    /// Receives up to `length` bytes of `socket` into a buffer of `group`, and gives how many.
    pub fn receive(&mut self, socket: &impl AsRawFd, length: u32, group: u16) -> i32 {
        let mut request = io_uring_sqe {
            opcode: IoringOp::Recv,
            flags: IoringSqeFlags::BUFFER_SELECT,
            fd: socket.as_raw_fd(),
            buf: buf_union { buf_group: group },
            ..io_uring_sqe::default()
        };
        request.len.len = length;
        self.queue(request);
        self.let_run();
        self.finish()
    }

    /// Puts a request that does nothing into the queue, and leaves it there.
    pub fn submit_nothing(&mut self) {
        self.queue(io_uring_sqe {
            opcode: IoringOp::Nop,
            ..io_uring_sqe::default()
        });
    }

    /// Closes the ring, and gives the memory of its queues.
    pub fn end(self) -> Region {
        self.rings
    }

    /// How many requests have completed.
    pub fn completions(&self) -> u32 {
        self.rings.observe(self.parameters.cq_off.tail as usize)
    }

    /// Starts to read `length` bytes from the start of `file` to `address`; `fixed` for buffer 0.
    pub fn start_read(&mut self, file: &File, address: u64, length: usize, fixed: bool) {
        let mut request = io_uring_sqe {
            opcode: if fixed {
                IoringOp::ReadFixed
            } else {
                IoringOp::Read
            },
            fd: file.as_raw_fd(),
            ..io_uring_sqe::default()
        };
        request.addr_or_splice_off_in.addr.ptr = address as *mut _;
        request.len.len = u32::try_from(length).expect("length");
        self.queue(request);
        self.let_run();
    }

    /// Waits for one completion and gives its result.
    pub fn finish(&mut self) -> i32 {
        // SAFETY: waits only; no argument is passed.
        let entered = unsafe { io_uring_enter(&self.fd, 0, 1, IoringEnterFlags::GETEVENTS) };
        entered.expect("io_uring_enter");
        let head = self.rings.observe(self.parameters.cq_off.head as usize);
        let mask = self
            .rings
            .observe(self.parameters.cq_off.ring_mask as usize);
        let entry = self.parameters.cq_off.cqes + 16 * (head & mask);
        let result = self.rings.observe(entry as usize + 8);
        self.rings
            .publish(self.parameters.cq_off.head as usize, head + 1);
        result.cast_signed()
    }

    fn queue(&mut self, request: io_uring_sqe) {
        let slot = self.sent % ENTRIES;
        // SAFETY: a request is plain bytes, all of which are initialized by `default`.
        let bytes = unsafe {
            std::slice::from_raw_parts((&raw const request).cast::<u8>(), size_of::<io_uring_sqe>())
        };
        self.requests
            .store_bytes(slot as usize * bytes.len(), bytes);
        let array = self.parameters.sq_off.array as usize + slot as usize * 4;
        self.rings.publish(array, slot);
        self.sent += 1;
        self.rings
            .publish(self.parameters.sq_off.tail as usize, self.sent);
    }

    /// Makes the kernel take one request from the queue.
    pub fn let_run(&self) {
        // SAFETY: the request names memory that its caller keeps mapped until it completes.
        let entered = unsafe { io_uring_enter(&self.fd, 1, 0, IoringEnterFlags::empty()) };
        assert_eq!(entered.expect("io_uring_enter"), 1);
    }

    /// What `/proc/self/fdinfo` says of the ring.
    pub fn description(&self) -> String {
        std::fs::read_to_string(format!("/proc/self/fdinfo/{}", self.fd.as_raw_fd()))
            .expect("fdinfo")
    }
}
