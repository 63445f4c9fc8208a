//! The object with the kernel programs, as a linker left it: which helpers of the kernel each
//! program calls, and how much stack it needs.
//!
//! Calls are counted where they stand, and not how often a packet makes them: a call in a loop
//! is one, and of two branches both count. A function that several places call counts once for
//! each program.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};

/// Calls of one program, with all functions that it reaches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Calls {
    /// Helpers by number, and at how many places each is called.
    pub helpers: BTreeMap<u32, usize>,
    /// Functions of its own, itself included.
    pub n_functions: usize,
    /// Instructions of all of these.
    pub n_instructions: usize,
    /// Bytes of stack where functions call each other deepest, as kernels before 6.9 count: each
    /// function's rounded up to 32.
    pub stack: u64,
}

impl Calls {
    /// Places at which a helper is called.
    pub fn n_helpers(&self) -> usize {
        self.helpers.values().sum()
    }
}

/// Programs of an object by name.
pub fn programs(object: &[u8]) -> Result<BTreeMap<String, Calls>> {
    let elf = Elf::read(object).context("the object is no ELF file of 64 bits")?;
    let functions = elf.functions();
    let mut programs = BTreeMap::new();
    for function in functions.values() {
        if elf.section_name(function.section) == Some(".text") {
            continue;
        }
        let mut calls = Calls {
            stack: elf.stack(&functions, function),
            ..Calls::default()
        };
        let mut reached = BTreeSet::from([function.place()]);
        let mut left = vec![function];
        while let Some(function) = left.pop() {
            calls.n_functions += 1;
            for call in elf.calls(function) {
                match call {
                    Call::Instruction => calls.n_instructions += 1,
                    Call::Helper(number) => *calls.helpers.entry(number).or_default() += 1,
                    Call::Function(place) if reached.insert(place) => {
                        left.extend(functions.get(&place));
                    }
                    Call::Function(_) | Call::Stack(_) => {}
                }
            }
        }
        programs.insert(function.name.clone(), calls);
    }
    Ok(programs)
}

/// Bytes of code in an object.
pub fn code_bytes(object: &[u8]) -> Result<usize> {
    let elf = Elf::read(object).context("the object is no ELF file of 64 bits")?;
    let code = elf.sections.iter().filter(|section| section.is_code);
    Ok(code.map(|section| section.bytes.len()).sum())
}

/// Name of a helper, for those that the programs call.
pub fn helper_name(number: u32) -> String {
    let name = match number {
        1 => "map_lookup_elem",
        2 => "map_update_elem",
        3 => "map_delete_elem",
        5 => "ktime_get_ns",
        7 => "get_prandom_u32",
        8 => "get_smp_processor_id",
        14 => "get_current_pid_tgid",
        15 => "get_current_uid_gid",
        16 => "get_current_comm",
        26 => "skb_load_bytes",
        35 => "get_current_task",
        46 => "get_socket_cookie",
        47 => "get_socket_uid",
        79 => "skb_cgroup_id",
        80 => "get_current_cgroup_id",
        95 => "sk_fullsock",
        98 => "get_listener_sock",
        107 => "sk_storage_get",
        108 => "sk_storage_delete",
        113 => "probe_read_kernel",
        115 => "probe_read_kernel_str",
        122 => "get_netns_cookie",
        123 => "get_current_ancestor_cgroup_id",
        125 => "ktime_get_boot_ns",
        127 => "seq_write",
        130 => "ringbuf_output",
        131 => "ringbuf_reserve",
        132 => "ringbuf_submit",
        133 => "ringbuf_discard",
        134 => "ringbuf_query",
        158 => "get_current_task_btf",
        162 => "sock_from_file",
        _ => return format!("helper {number}"),
    };
    name.to_owned()
}

/// Section, and byte in it.
type Place = (usize, u64);

enum Call {
    /// Any instruction, calls included.
    Instruction,
    Helper(u32),
    Function(Place),
    /// Uses the stack up to so many bytes below the frame.
    Stack(u64),
}

#[derive(Debug)]
struct Section<'o> {
    name: usize,
    kind: u32,
    is_code: bool,
    link: usize,
    target: usize,
    bytes: &'o [u8],
}

#[derive(Debug)]
struct Function {
    name: String,
    section: usize,
    start: u64,
    len: u64,
}

impl Function {
    fn place(&self) -> Place {
        (self.section, self.start)
    }
}

#[derive(Debug)]
struct Elf<'o> {
    sections: Vec<Section<'o>>,
    names: usize,
}

impl<'o> Elf<'o> {
    fn read(object: &'o [u8]) -> Option<Self> {
        const EXECUTABLE: u64 = 4;
        const NO_BITS: u32 = 8;
        if !object.starts_with(b"\x7fELF\x02\x01") {
            return None;
        }
        let table = wide(object, 0x28)? as usize;
        let (size, count) = (half(object, 0x3a)? as usize, half(object, 0x3c)? as usize);
        let mut sections = Vec::new();
        for number in 0..count {
            let header = object.get(table + number * size..)?;
            let (kind, start) = (word(header, 4)?, wide(header, 24)? as usize);
            let len = match kind {
                NO_BITS => 0,
                _ => wide(header, 32)? as usize,
            };
            sections.push(Section {
                name: word(header, 0)? as usize,
                kind,
                is_code: wide(header, 8)? & EXECUTABLE != 0,
                link: word(header, 40)? as usize,
                target: word(header, 44)? as usize,
                bytes: object.get(start..start + len)?,
            });
        }
        let names = half(object, 0x3e)? as usize;
        Some(Self { sections, names })
    }

    fn section_name(&self, section: usize) -> Option<&'o str> {
        text(
            self.sections.get(self.names)?.bytes,
            self.sections.get(section)?.name,
        )
    }

    /// Symbols as (name, kind, section, value, size), by number.
    fn symbols(&self) -> impl Iterator<Item = (String, u8, usize, u64, u64)> {
        const SYMBOLS: u32 = 2;
        const SIZE: usize = 24;
        let tables = self.sections.iter().filter(|it| it.kind == SYMBOLS);
        tables.flat_map(|table| {
            let names = self.sections.get(table.link).map_or(&[][..], |it| it.bytes);
            table.bytes.chunks_exact(SIZE).filter_map(move |symbol| {
                let name = text(names, word(symbol, 0)? as usize)?.to_owned();
                let section = half(symbol, 6)? as usize;
                let kind = symbol.get(4)? & 0xf;
                Some((name, kind, section, wide(symbol, 8)?, wide(symbol, 16)?))
            })
        })
    }

    fn functions(&self) -> BTreeMap<Place, Function> {
        const FUNCTION: u8 = 2;
        let functions = self.symbols().filter(|(_, kind, ..)| *kind == FUNCTION);
        functions
            .map(|(name, _, section, start, len)| Function {
                name,
                section,
                start,
                len,
            })
            .map(|function| (function.place(), function))
            .collect()
    }

    /// Symbol of the relocation at this byte of a section.
    fn relocation(&self, section: usize, at: u64) -> Option<(usize, u64)> {
        const RELOCATIONS: u32 = 9;
        let tables = self.sections.iter();
        let mut tables = tables.filter(|it| it.kind == RELOCATIONS && it.target == section);
        tables.find_map(|table| {
            let mut entries = table.bytes.chunks_exact(16);
            let entry = entries.find(|entry| wide(entry, 0) == Some(at))?;
            let symbol = (wide(entry, 8)? >> 32) as usize;
            let (_, _, section, value, _) = self.symbols().nth(symbol)?;
            Some((section, value))
        })
    }

    /// Bytes of stack of a function and of those that it calls, see [`Calls::stack`].
    fn stack(&self, functions: &BTreeMap<Place, Function>, function: &Function) -> u64 {
        const LEAST: u64 = 32;
        let (mut own, mut below) = (1, 0);
        let mut seen = BTreeSet::new();
        for call in self.calls(function) {
            match call {
                Call::Stack(bytes) => own = own.max(bytes),
                Call::Function(place) if seen.insert(place) => {
                    let called = functions.get(&place);
                    let needed = called.map_or(0, |called| self.stack(functions, called));
                    below = below.max(needed);
                }
                _ => {}
            }
        }
        own.next_multiple_of(LEAST) + below
    }

    fn calls(&self, function: &Function) -> Vec<Call> {
        const CALL: u8 = 0x85;
        const LOAD_WIDE: u8 = 0x18;
        const MOVE: u8 = 0xbf;
        const ADD: u8 = 0x07;
        const FRAME: u8 = 10;
        const HELPER: u8 = 0;
        const FUNCTION: u8 = 1;
        const POINTER_TO_FUNCTION: u8 = 4;
        let bytes = self.sections.get(function.section).map(|it| it.bytes);
        let range = function.start as usize..(function.start + function.len) as usize;
        let code = bytes.and_then(|bytes| bytes.get(range)).unwrap_or_default();
        let mut calls = Vec::new();
        // The register that the instruction before has made a pointer to the frame.
        let mut pointer = None;
        for (number, instruction) in code.chunks_exact(8).enumerate() {
            calls.push(Call::Instruction);
            let (Some(&[code, registers, ..]), Some(immediate)) =
                (instruction.first_chunk::<2>(), word(instruction, 4))
            else {
                continue;
            };
            let (to, from) = (registers & 0xf, registers >> 4);
            let below = match code & 7 {
                // Loads, and stores of either kind.
                1 if from == FRAME => half(instruction, 2).map(|offset| -i64::from(offset as i16)),
                2 | 3 if to == FRAME => {
                    half(instruction, 2).map(|offset| -i64::from(offset as i16))
                }
                _ if code == ADD && pointer == Some(to) => Some(-i64::from(immediate as i32)),
                _ => None,
            };
            calls.extend(
                below
                    .and_then(|below| u64::try_from(below).ok())
                    .map(Call::Stack),
            );
            pointer = (code == MOVE && from == FRAME).then_some(to);
            let at = function.start + number as u64 * 8;
            let relocated = || self.relocation(function.section, at);
            // Counted from the instruction behind this one.
            let ahead = i64::from(immediate as i32) * 8 + 8;
            match (code, registers >> 4) {
                (CALL, HELPER) => calls.push(Call::Helper(immediate)),
                (CALL, FUNCTION) => calls.push(Call::Function(match relocated() {
                    Some((section, value)) if value == 0 && ahead > 0 => (section, ahead as u64),
                    Some(place) => place,
                    None => (function.section, at.wrapping_add_signed(ahead)),
                })),
                (LOAD_WIDE, POINTER_TO_FUNCTION) => calls.extend(relocated().map(Call::Function)),
                _ => {}
            }
        }
        calls
    }
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    bytes
        .get(at..)?
        .first_chunk()
        .copied()
        .map(u16::from_le_bytes)
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes
        .get(at..)?
        .first_chunk()
        .copied()
        .map(u32::from_le_bytes)
}

fn wide(bytes: &[u8], at: usize) -> Option<u64> {
    bytes
        .get(at..)?
        .first_chunk()
        .copied()
        .map(u64::from_le_bytes)
}

/// A name in a table of names.
fn text(names: &[u8], at: usize) -> Option<&str> {
    let rest = names.get(at..)?;
    let end = rest.iter().position(|byte| *byte == 0)?;
    std::str::from_utf8(rest.get(..end)?).ok()
}
