//! Addresses of sockets as bytes.

use super::error::SocketError;

/// The port in an address of IPv4 or IPv6; 0 if there is none.
pub(super) fn port(address: &[u8]) -> u16 {
    match address.get(2..4) {
        Some(port) => u16::from_be_bytes([port[0], port[1]]),
        None => 0,
    }
}

/// Refuses bytes that are no address of this family, AF_INET or AF_INET6.
pub(super) fn check_address(index: usize, address: &[u8], family: i32) -> Result<(), SocketError> {
    let length = if family == 10 { 28 } else { 16 };
    let own = address
        .get(..2)
        .map(|bytes| u16::from_ne_bytes([bytes[0], bytes[1]]));
    if address.len() == length && own.map(i32::from) == Some(family) {
        return Ok(());
    }
    Err(SocketError::Damaged {
        index,
        what: "its address",
    })
}

/// Longest name: the field `sun_path`.
const NAME_BYTES_MAX: usize = 108;

/// The bytes of an address with this name. `None` if no socket can have it.
pub(super) fn address_of(name: &[u8]) -> Option<Vec<u8>> {
    let is_path = name.first().is_some_and(|first| *first != 0);
    if name.len() > NAME_BYTES_MAX || (is_path && name.contains(&0)) {
        return None;
    }
    let mut address = 1_u16.to_ne_bytes().to_vec();
    address.extend_from_slice(name);
    Some(address)
}
