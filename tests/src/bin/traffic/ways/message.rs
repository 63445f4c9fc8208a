//! Messages of sendmsg(2), with what goes along with them.

use std::os::fd::RawFd;

use nix::sys::socket::SockaddrLike;
use trefoil_lab::ways::{Extra, Place};

use super::Way;
use super::calls::{empty_message, part};

impl Way<'_> {
    /// Sends to a place, with control messages.
    pub(super) fn message(&self, fd: RawFd, place: Place, payload: &[u8], flags: i32) {
        let mut room: Vec<u8> = Vec::new();
        let mut add = |level: i32, name: i32, value: &[u8]| {
            let len = size_of::<libc::cmsghdr>() + value.len();
            room.extend(len.to_ne_bytes());
            room.extend(level.to_ne_bytes());
            room.extend(name.to_ne_bytes());
            room.extend(value);
            room.resize(room.len().next_multiple_of(8), 0);
        };
        for extra in &self.case.extras {
            match *extra {
                Extra::RouteMessage(by) => {
                    let (level, name, value) = self.route(by, true);
                    add(level, name, &value);
                }
                Extra::PacketInfo(which) => {
                    let index = nix::net::if_::if_nametoindex(self.device(which)).unwrap_or(0);
                    if self.is_v6() {
                        let value = [&[0; 16], &index.to_ne_bytes()[..]].concat();
                        add(41, libc::IPV6_PKTINFO, &value);
                    } else {
                        let value = [&index.to_ne_bytes(), &[0; 8][..]].concat();
                        add(0, libc::IP_PKTINFO, &value);
                    }
                }
                _ => {}
            }
        }
        let address = self.address(place);
        let (mut part, mut message) = (part(payload), empty_message());
        message.msg_name = address.as_ptr().cast_mut().cast();
        message.msg_namelen = address.len();
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        // Longs, so that the headers are aligned.
        let longs = room.chunks_exact(8);
        let mut longs: Vec<u64> = longs
            .filter_map(|chunk| Some(u64::from_ne_bytes(chunk.try_into().ok()?)))
            .collect();
        if !longs.is_empty() {
            message.msg_control = longs.as_mut_ptr().cast();
            message.msg_controllen = room.len();
        }
        // SAFETY: what the message points to outlives the call.
        unsafe { libc::sendmsg(fd, &raw const message, flags) };
    }
}
