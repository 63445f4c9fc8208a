//! Messages of sendmsg(2), with what goes along with them.

use std::os::fd::RawFd;

use nix::sys::socket::{SockaddrLike, SockaddrStorage};
use trefoil_lab::ways::{Extra, Place};

use super::Way;
use super::calls::{empty_message, part};

impl Way<'_> {
    /// Sends to these places in one call, with control messages.
    pub(super) fn messages(&self, fd: RawFd, places: &[Place], payload: &[u8], flags: i32) {
        let addresses: Vec<SockaddrStorage> =
            places.iter().map(|place| self.address(*place)).collect();
        let (mut control, mut part) = (self.control(), part(payload));
        let mut messages: Vec<libc::mmsghdr> = Vec::new();
        for address in &addresses {
            let mut message = empty_message();
            message.msg_name = address.as_ptr().cast_mut().cast();
            message.msg_namelen = address.len();
            message.msg_iov = &raw mut part;
            message.msg_iovlen = 1;
            if !control.is_empty() {
                message.msg_control = control.as_mut_ptr().cast();
                message.msg_controllen = control.len() * size_of::<u64>();
            }
            messages.push(libc::mmsghdr {
                msg_hdr: message,
                msg_len: 0,
            });
        }
        match messages.as_mut_slice() {
            // SAFETY: what the message points to outlives the call.
            [one] => unsafe {
                libc::sendmsg(fd, &raw const one.msg_hdr, flags);
            },
            // SAFETY: likewise, of each of as many messages.
            all => unsafe {
                libc::sendmmsg(fd, all.as_mut_ptr(), all.len() as u32, flags);
            },
        }
    }

    /// Control messages; in longs, so that their headers are aligned.
    fn control(&self) -> Vec<u64> {
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
        let longs = room.chunks_exact(8);
        longs
            .filter_map(|chunk| Some(u64::from_ne_bytes(chunk.try_into().ok()?)))
            .collect()
    }
}
