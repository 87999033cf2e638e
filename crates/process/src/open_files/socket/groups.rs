//! Which multicast groups a socket has joined.
//!
//! The kernel lists the groups of each interface (`/proc/net/igmp`, `/proc/net/igmp6`), but not those of a socket. So the socket
//! is asked for each.

use pagetide_kernel::socket_option::is_group_member;
use std::cell::OnceCell;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::BorrowedFd;

/// The groups of all interfaces, read when they are first needed.
#[derive(Default)]
pub(super) struct Groups {
    listed: OnceCell<Vec<(u32, IpAddr)>>,
}

impl Groups {
    /// A group the socket is in.
    pub(super) fn one_of(&self, socket: BorrowedFd<'_>) -> Option<IpAddr> {
        let listed = self.listed.get_or_init(|| {
            let read = |name: &str| fs::read_to_string(format!("/proc/net/{name}"));
            let mut listed = parse_igmp(&read("igmp").unwrap_or_default());
            listed.extend(parse_igmp6(&read("igmp6").unwrap_or_default()));
            listed
        });
        let joined = |group: &IpAddr, interface: u32| {
            let answer = match group {
                IpAddr::V4(group) => is_group_member(socket, interface, &group.octets()),
                IpAddr::V6(group) => is_group_member(socket, interface, &group.octets()),
            };
            // An error is that the socket is of another family.
            answer.unwrap_or(false)
        };
        let mut groups = listed.iter();
        let found = groups.find(|(interface, group)| joined(group, *interface));
        found.map(|(_, group)| *group)
    }
}

/// Lines of an interface begin with its index, those of its groups with a tabulator and the group as a number in the order of
/// bytes of this machine.
fn parse_igmp(text: &str) -> Vec<(u32, IpAddr)> {
    let mut interface = 0;
    let mut listed = Vec::new();
    for line in text.lines().skip(1) {
        let Some(word) = line.split_whitespace().next() else {
            continue;
        };
        if !line.starts_with('\t') {
            interface = word.parse().unwrap_or(0);
        } else if let Ok(group) = u32::from_str_radix(word, 16) {
            listed.push((interface, Ipv4Addr::from(group.to_ne_bytes()).into()));
        }
    }
    listed
}

fn parse_igmp6(text: &str) -> Vec<(u32, IpAddr)> {
    let parse = |line: &str| {
        let mut words = line.split_whitespace();
        let interface = words.next()?.parse().ok()?;
        let group = u128::from_str_radix(words.nth(1)?, 16).ok()?;
        Some((interface, Ipv6Addr::from(group).into()))
    };
    text.lines().filter_map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_lists_are_read() {
        let text = "Idx\tDevice    : Count Querier\tGroup    Users Timer\tReporter\n\
            1\tlo        :     1      V3\n\
            \t\t\t\t010000E0     1 0:00000000\t\t0\n\
            4\teth0      :     2      V3\n\
            \t\t\t\t5D5247EF     1 0:00000000\t\t0\n";
        let expected = [
            (1, IpAddr::from([224, 0, 0, 1])),
            (4, IpAddr::from([239, 71, 82, 93])),
        ];
        assert_eq!(parse_igmp(text), expected);
        let text = "1    lo              ff020000000000000000000000000001     1 0000000C 0\nx\n";
        let expected = [(1, IpAddr::from([0xff02, 0, 0, 0, 0, 0, 0, 1]))];
        assert_eq!(parse_igmp6(text), expected);
    }
}

#[cfg(test)]
mod hostile_tests {
    use super::*;

    #[test]
    fn hostile_text_of_groups() {
        let sound = b"1\tlo : 1 V3\n\t\t\t\t010000E0 1 0:00000000\t\t0\n4 eth0 ff020000000000000000000000000001 1";
        pagetide_testing::hostile::survives(sound, |text| {
            let text = String::from_utf8_lossy(text);
            parse_igmp(&text).len() + parse_igmp6(&text).len() < 1 << 16
        });
    }
}
