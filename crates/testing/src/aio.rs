//! A file whose reads take as long as the test wants: a FUSE file served by the test itself. With it,
//! a read into memory that the kernel has pinned can be held open across a harvest.

use nix::libc;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

/// A mounted file system with one file, `slow`, of one page. Reads of it arrive at [`SlowFile::asked`]
/// and are answered by [`SlowFile::answer`].
pub struct SlowFile {
    directory: tempfile::TempDir,
    answers: Option<Sender<u8>>,
    asked: Receiver<()>,
    server: Option<JoinHandle<()>>,
}

impl SlowFile {
    /// Mounts it; an error where this is not allowed.
    pub fn mount() -> io::Result<Self> {
        let device = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/fuse")?;
        let directory = tempfile::tempdir()?;
        let target = std::ffi::CString::new(directory.path().as_os_str().as_encoded_bytes())?;
        let options = format!(
            "fd={},rootmode=40000,user_id=0,group_id=0",
            device.as_raw_fd()
        );
        let options = std::ffi::CString::new(options)?;
        // SAFETY: all strings are terminated.
        let mounted = unsafe {
            libc::mount(
                c"pagetide-test".as_ptr(),
                target.as_ptr(),
                c"fuse".as_ptr(),
                libc::MS_NOSUID | libc::MS_NODEV,
                options.as_ptr().cast(),
            )
        };
        super::checked(mounted)?;
        let (answers, to_give) = channel();
        let (ask, asked) = channel();
        let server = std::thread::spawn(move || serve(device, &ask, &to_give));
        Ok(Self {
            directory,
            answers: Some(answers),
            asked,
            server: Some(server),
        })
    }

    /// The file, opened for direct reads.
    pub fn open(&self) -> io::Result<File> {
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(libc::O_DIRECT);
        options.open(self.path())
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("slow")
    }

    /// Waits until the kernel has asked for the page: from now on the reader's memory is pinned.
    pub fn asked(&self) {
        self.asked.recv().expect("the server is gone");
    }

    /// Lets the pending read end, with a page full of `value`.
    pub fn answer(&self, value: u8) {
        self.answers
            .as_ref()
            .expect("answers")
            .send(value)
            .expect("the server is gone");
    }
}

impl Drop for SlowFile {
    fn drop(&mut self) {
        self.answers = None;
        let target = self.directory.path().as_os_str().as_encoded_bytes();
        if let Ok(target) = std::ffi::CString::new(target) {
            // SAFETY: a terminated path. Detached at once; the server ends when the last user does.
            unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH) };
        }
        if let Some(server) = self.server.take() {
            let _ = server.join();
        }
    }
}

const ROOT: u64 = 1;
const SLOW: u64 = 2;

/// Answers requests until the file system is unmounted. Layouts: `include/uapi/linux/fuse.h`, 7.31.
fn serve(mut device: File, ask: &Sender<()>, to_give: &Receiver<u8>) {
    let mut request = vec![0u8; 1 << 17];
    while let Ok(length) = device.read(&mut request) {
        let word = |at: usize| u32::from_ne_bytes(request[at..at + 4].try_into().expect("word"));
        let (operation, unique) = (word(4), u64::from(word(8)) | u64::from(word(12)) << 32);
        let node = u64::from(word(16));
        assert!(length >= 40);
        let body: Result<Vec<u8>, i32> = match operation {
            // FORGET and INTERRUPT get no answer.
            2 | 36 | 42 => continue,
            // INIT: version 7.31, and FUSE_ASYNC_DIO so that several reads may be under way.
            26 => Ok(init_answer()),
            1 => Ok([SLOW, 0, 0, 0, 0]
                .map(u64::to_ne_bytes)
                .concat()
                .into_iter()
                .chain(attributes(SLOW))
                .collect()),
            3 => Ok([0u64, 0]
                .map(u64::to_ne_bytes)
                .concat()
                .into_iter()
                .chain(attributes(node))
                .collect()),
            // OPEN: file handle 0, FOPEN_DIRECT_IO.
            14 => Ok([0u32, 0, 1, 0].map(u32::to_ne_bytes).concat()),
            15 => {
                let _ = ask.send(());
                match to_give.recv() {
                    Ok(value) => Ok(vec![value; super::PAGE]),
                    Err(_) => Err(libc::EIO),
                }
            }
            // FLUSH and RELEASE.
            25 | 18 => Ok(Vec::new()),
            _ => Err(libc::ENOSYS),
        };
        let (error, body) = match body {
            Ok(body) => (0, body),
            Err(errno) => (-errno, Vec::new()),
        };
        let mut answer = Vec::new();
        answer.extend_from_slice(
            &u32::try_from(16 + body.len())
                .expect("length")
                .to_ne_bytes(),
        );
        answer.extend_from_slice(&error.to_ne_bytes());
        answer.extend_from_slice(&unique.to_ne_bytes());
        answer.extend_from_slice(&body);
        let _ = device.write_all(&answer);
    }
}

/// fuse_init_out.
fn init_answer() -> Vec<u8> {
    const ASYNC_DIRECT: u32 = 1 << 15;
    let mut answer = [7u32, 31, 0, ASYNC_DIRECT].map(u32::to_ne_bytes).concat();
    answer.extend_from_slice(&12u16.to_ne_bytes());
    answer.extend_from_slice(&12u16.to_ne_bytes());
    answer.extend_from_slice(&(1u32 << 16).to_ne_bytes());
    answer.extend_from_slice(&1u32.to_ne_bytes());
    answer.resize(64, 0);
    answer
}

/// fuse_attr: the root directory, or the file of one page.
fn attributes(node: u64) -> Vec<u8> {
    let (mode, size): (u32, u64) = match node {
        ROOT => (0o040_755, 0),
        _ => (0o100_444, super::PAGE as u64),
    };
    let mut answer = [node, size, 8, 0, 0, 0].map(u64::to_ne_bytes).concat();
    let words = [0, 0, 0, mode, 1, 0, 0, 0, 4096, 0];
    answer.extend_from_slice(&words.map(u32::to_ne_bytes).concat());
    answer
}
