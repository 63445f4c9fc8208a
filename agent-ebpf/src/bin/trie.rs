//! Programs that a benchmark compares decisions with: one finds what `Question`s ask for in the
//! kernel's own table for prefixes, one answers them with nothing. No part of the agent.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod program {
    use aya_ebpf::{
        btf_maps::{LpmTrie, lpm_trie::Key},
        macros::{btf_map, classifier},
        programs::TcContext,
    };
    use trefoil_ebpf::abi::{MAX_QUESTIONS, Question};

    #[btf_map]
    static PREFIXES32: LpmTrie<[u8; 4], u32, 1048576> = LpmTrie::new();

    #[btf_map]
    static PREFIXES128: LpmTrie<[u8; 16], u32, 1048576> = LpmTrie::new();

    const LINK_HEADER: usize = 14;

    /// As `judge_question` of the agent's object, with the class of the prefix as the
    /// answer.
    #[classifier]
    fn trie_question(ctx: TcContext) -> i32 {
        for number in 0..MAX_QUESTIONS {
            let offset = LINK_HEADER + number * size_of::<Question>();
            let Ok(question) = ctx.load::<Question>(offset) else {
                return number as i32;
            };
            let address = question.peer.address;
            let class = match address.as_v4() {
                Some(v4) => PREFIXES32.get(&Key::new(32, v4.to_be_bytes())),
                None => PREFIXES128.get(&Key::new(128, address.0)),
            };
            let answer = class.copied().unwrap_or(0);
            if ctx.store(offset, &answer, 0).is_err() {
                return number as i32;
            }
        }
        MAX_QUESTIONS as i32
    }

    /// Reads each question and writes an answer: a cost that is no part of either decision.
    #[classifier]
    fn no_question(ctx: TcContext) -> i32 {
        for number in 0..MAX_QUESTIONS {
            let offset = LINK_HEADER + number * size_of::<Question>();
            let Ok(question) = ctx.load::<Question>(offset) else {
                return number as i32;
            };
            let answer = question.uid;
            if ctx.store(offset, &answer, 0).is_err() {
                return number as i32;
            }
        }
        MAX_QUESTIONS as i32
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
