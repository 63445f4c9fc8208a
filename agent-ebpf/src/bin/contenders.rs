//! Programs that the benchmark of costs compares Trefoil with: an empty one, accounting and a
//! deny list as systemd does them, and the floor of a design that tags sockets and looks at
//! two hooks. No part of the agent.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]
#![allow(
    clippy::multiple_unsafe_ops_per_block,
    clippy::undocumented_unsafe_blocks,
    reason = "the verifier checks every access"
)]

#[cfg(target_arch = "bpf")]
#[path = "../atomic.rs"]
#[allow(dead_code, reason = "some of it is for programs of the agent alone")]
mod atomic;

#[cfg(target_arch = "bpf")]
mod program {
    use core::ptr;

    use aya_ebpf::{
        bindings::{
            __sk_buff, BPF_F_CLONE, BPF_F_NO_PREALLOC, BPF_SK_STORAGE_GET_F_CREATE,
            bpf_map_type::BPF_MAP_TYPE_SK_STORAGE,
        },
        btf_maps::{Array, LpmTrie, PerCpuArray, lpm_trie::Key},
        helpers::generated::{bpf_sk_fullsock, bpf_sk_storage_get, bpf_skb_load_bytes},
        macros::{btf_map, cgroup_skb, cgroup_sock, classifier},
        programs::{SkBuffContext, SockContext, TcContext},
    };

    use super::atomic;

    const PASS: i32 = 1;
    const DROP: i32 = 0;
    /// `TCX_NEXT`
    const NEXT: i32 = -1;
    const LINK_HEADER: usize = 14;
    /// An IPv4 header without options, and both ports.
    const ENDS: usize = 20 + 4;

    /// Packets and bytes, each in an entry, as systemd has them.
    #[btf_map]
    static ACCOUNTS: Array<u64, 2> = Array::new();

    /// Destinations that are denied.
    #[btf_map]
    static DENIED: LpmTrie<[u8; 4], u32, 131072> = LpmTrie::new();

    #[cgroup_skb(egress)]
    fn empty(_: SkBuffContext) -> i32 {
        PASS
    }

    #[cgroup_skb(egress)]
    fn account_egress(ctx: SkBuffContext) -> i32 {
        account(ctx.skb.skb);
        PASS
    }

    #[cgroup_skb(ingress)]
    fn account_ingress(ctx: SkBuffContext) -> i32 {
        account(ctx.skb.skb);
        PASS
    }

    #[cgroup_skb(egress)]
    fn deny_egress(ctx: SkBuffContext) -> i32 {
        verdict(is_denied(ctx.skb.skb, DESTINATION))
    }

    #[cgroup_skb(ingress)]
    fn deny_ingress(ctx: SkBuffContext) -> i32 {
        verdict(is_denied(ctx.skb.skb, SOURCE))
    }

    #[cgroup_skb(egress)]
    fn both_egress(ctx: SkBuffContext) -> i32 {
        let is_denied = is_denied(ctx.skb.skb, DESTINATION);
        account(ctx.skb.skb);
        verdict(is_denied)
    }

    #[cgroup_skb(ingress)]
    fn both_ingress(ctx: SkBuffContext) -> i32 {
        let is_denied = is_denied(ctx.skb.skb, SOURCE);
        account(ctx.skb.skb);
        verdict(is_denied)
    }

    /// Where an IPv4 header has them.
    const SOURCE: u32 = 12;
    const DESTINATION: u32 = 16;

    fn verdict(is_denied: bool) -> i32 {
        if is_denied { DROP } else { PASS }
    }

    #[inline(always)]
    fn account(skb: *mut __sk_buff) {
        if let Some(packets) = ACCOUNTS.get_ptr_mut(0) {
            atomic::add(packets, 1);
        }
        if let Some(bytes) = ACCOUNTS.get_ptr_mut(1) {
            atomic::add(bytes, u64::from(unsafe { (*skb).len }));
        }
    }

    #[inline(always)]
    fn is_denied(skb: *mut __sk_buff, offset: u32) -> bool {
        const ETH_P_IP: u32 = 0x0800;
        if unsafe { (*skb).protocol } != ETH_P_IP.to_be() {
            return false;
        }
        let mut address = [0_u8; 4];
        let error = unsafe {
            bpf_skb_load_bytes(skb.cast(), offset, ptr::from_mut(&mut address).cast(), 4)
        };
        error == 0 && DENIED.get(&Key::new(32, address)).is_some()
    }

    /// Tag of the floor.
    #[repr(C)]
    struct Tag {
        destination: u64,
        packets: u64,
        bytes: u64,
        at_uplink: [u64; 2],
    }

    #[repr(C)]
    struct Tags {
        r#type: *const [i32; BPF_MAP_TYPE_SK_STORAGE as usize],
        key: *const i32,
        value: *const Tag,
        max_entries: *const [i32; 0],
        map_flags: *const [i32; (BPF_F_NO_PREALLOC | BPF_F_CLONE) as usize],
    }

    // SAFETY: placeholders that the loader replaces; never dereferenced.
    unsafe impl Sync for Tags {}

    #[unsafe(link_section = ".maps")]
    #[unsafe(export_name = "TAGS")]
    static TAGS: Tags = Tags {
        r#type: ptr::null(),
        key: ptr::null(),
        value: ptr::null(),
        max_entries: ptr::null(),
        map_flags: ptr::null(),
    };

    /// Traffic that left by the uplink.
    #[btf_map]
    static BOOKS: PerCpuArray<[u64; 2], 1> = PerCpuArray::new();

    #[inline(always)]
    fn tag<T>(socket: *mut T, flags: u32) -> *mut Tag {
        unsafe {
            bpf_sk_storage_get(
                ptr::from_ref(&TAGS).cast_mut().cast(),
                socket.cast(),
                ptr::null_mut(),
                u64::from(flags),
            )
            .cast()
        }
    }

    #[cgroup_sock(sock_create)]
    fn floor_create(ctx: SockContext) -> i32 {
        tag(ctx.sock, BPF_SK_STORAGE_GET_F_CREATE);
        PASS
    }

    #[cgroup_skb(egress)]
    fn floor_egress(ctx: SkBuffContext) -> i32 {
        if let Some(tag) = find(ctx.skb.skb, 0) {
            unsafe {
                atomic::add(&raw mut (*tag).packets, 1);
                atomic::add(&raw mut (*tag).bytes, u64::from((*ctx.skb.skb).len));
            }
        }
        PASS
    }

    #[classifier]
    fn floor_uplink(ctx: TcContext) -> i32 {
        let bytes = u64::from(unsafe { (*ctx.skb.skb).len });
        if let Some(tag) = find(ctx.skb.skb, LINK_HEADER) {
            unsafe {
                atomic::add(&raw mut (*tag).at_uplink[0], 1);
                atomic::add(&raw mut (*tag).at_uplink[1], bytes);
            }
        }
        if let Some(books) = BOOKS.get_ptr_mut(0) {
            unsafe {
                (*books)[0] += 1;
                (*books)[1] += bytes;
            }
        }
        NEXT
    }

    /// Tag of the packet's socket, with the packet's destination as the last one.
    #[inline(always)]
    fn find(skb: *mut __sk_buff, start: usize) -> Option<*mut Tag> {
        let socket = unsafe { (*skb).__bindgen_anon_2.sk };
        if socket.is_null() {
            return None;
        }
        let socket = unsafe { bpf_sk_fullsock(socket) };
        if socket.is_null() {
            return None;
        }
        let tag = tag(socket, 0);
        if tag.is_null() {
            return None;
        }
        let (data, end) = unsafe { ((*skb).data as usize, (*skb).data_end as usize) };
        if data + start + ENDS > end {
            return None;
        }
        let address = unsafe { *((data + start + 16) as *const u32) };
        let port = unsafe { *((data + start + 22) as *const u16) };
        let destination = u64::from(address) << 16 | u64::from(port);
        unsafe {
            if (*tag).destination != destination {
                (*tag).destination = destination;
            }
        }
        Some(tag)
    }

    #[unsafe(link_section = "license")]
    #[unsafe(no_mangle)]
    static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

    #[panic_handler]
    fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
        loop {}
    }
}

#[cfg(not(target_arch = "bpf"))]
fn main() {
    eprintln!("this is a BPF object; `cargo xtask bench` builds and loads it");
}
