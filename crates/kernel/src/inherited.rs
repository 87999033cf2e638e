//! Memory that this process maps at given addresses for those that it forks, and for nothing else: what they inherit they
//! share until somebody writes. mmap(2) with MAP_FIXED_NOREPLACE, Linux 4.17.

#![allow(unsafe_code)]

use nix::libc;
use std::io;

/// Arguments of mmap(2).
#[derive(Clone, Copy, Debug)]
pub struct MapArguments {
    /// Where; whole pages.
    pub address: u64,
    /// How many bytes; whole pages.
    pub length: usize,
    /// `PROT_*`.
    pub protection: i32,
    /// `MAP_*`, without a word of the place.
    pub flags: i32,
    /// The file, and from which byte on.
    pub file: Option<(i32, i64)>,
}

/// Memory that was mapped. Dropping this unmaps it here; those that were forked meanwhile keep theirs.
#[derive(Debug, Default)]
pub struct Inherited {
    mapped: Vec<(u64, usize)>,
}

impl Inherited {
    /// Maps memory where nothing is. EEXIST: something of this process is there.
    pub fn map(&mut self, wanted: &MapArguments) -> io::Result<()> {
        let (descriptor, offset) = wanted.file.unwrap_or((-1, 0));
        let place = libc::MAP_FIXED | libc::MAP_FIXED_NOREPLACE;
        // SAFETY: with MAP_FIXED_NOREPLACE and without MAP_FIXED nothing that is mapped is touched, and no reference leads to
        // what is new: it is only ever written to by its address, through /proc/self/mem or process_vm_writev(2).
        let at = unsafe {
            libc::mmap(
                wanted.address as *mut libc::c_void,
                wanted.length,
                wanted.protection,
                wanted.flags & !place | libc::MAP_FIXED_NOREPLACE,
                descriptor,
                offset,
            )
        };
        match at {
            libc::MAP_FAILED => Err(io::Error::last_os_error()),
            at => {
                self.mapped.push((at as u64, wanted.length));
                if at as u64 == wanted.address {
                    Ok(())
                } else {
                    Err(io::Error::from_raw_os_error(libc::EEXIST))
                }
            }
        }
    }
}

impl Drop for Inherited {
    fn drop(&mut self) {
        for &(address, length) in &self.mapped {
            // SAFETY: this is what `map` has mapped, and no reference leads there.
            unsafe { libc::munmap(address as *mut libc::c_void, length) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: usize = 4096;

    #[test]
    fn it_is_mapped_where_nothing_is_and_goes_with_its_owner() {
        let wanted = MapArguments {
            address: 0x1357_0000_0000,
            length: 4 * PAGE,
            protection: libc::PROT_READ | libc::PROT_WRITE,
            flags: libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED,
            file: None,
        };
        let is_mapped = || {
            let mappings = crate::maps::mappings(std::process::id().cast_signed()).expect("maps");
            mappings
                .iter()
                .any(|mapping| mapping.start == wanted.address)
        };
        let mut inherited = Inherited::default();
        inherited.map(&wanted).expect("nothing is there");
        assert!(is_mapped());
        let again = inherited.map(&wanted).expect_err("it is there");
        assert_eq!(again.raw_os_error(), Some(libc::EEXIST));
        drop(inherited);
        assert!(!is_mapped());
    }
}
