//! The kernel's type information, as far as offsets of fields and names of
//! functions go. aya reads it too, but shows neither.
//!
//! The format is that of Documentation/bpf/btf.rst, in the host's byte order.

use std::collections::HashMap;

const MAGIC: u16 = 0xeb9f;
/// Types that may lie one inside the other before that is taken for damage.
const MAX_DEPTH: usize = 32;

mod kind {
    pub const INT: u32 = 1;
    pub const ARRAY: u32 = 3;
    pub const STRUCT: u32 = 4;
    pub const UNION: u32 = 5;
    pub const ENUM: u32 = 6;
    pub const TYPEDEF: u32 = 8;
    pub const VOLATILE: u32 = 9;
    pub const CONST: u32 = 10;
    pub const RESTRICT: u32 = 11;
    pub const FUNC: u32 = 12;
    pub const FUNC_PROTO: u32 = 13;
    pub const VAR: u32 = 14;
    pub const DATASEC: u32 = 15;
    pub const DECL_TAG: u32 = 17;
    pub const TYPE_TAG: u32 = 18;
    pub const ENUM64: u32 = 19;
}

/// Type information, indexed by type id and by name.
pub struct Types {
    data: Vec<u8>,
    strings: usize,
    strings_len: usize,
    /// Where strings of a module begin, whose offsets go on behind the kernel's.
    module_strings: usize,
    /// Where each type begins; id 0 is `void` and has no entry of its own.
    at: Vec<usize>,
    by_name: HashMap<Vec<u8>, Vec<u32>>,
}

impl Types {
    /// Reads type information; `None` if it is damaged or of an unknown kind.
    pub fn parse(data: Vec<u8>) -> Option<Self> {
        let parts = Parts::of(&data)?;
        let mut this = Self {
            strings: parts.strings,
            strings_len: parts.strings_len,
            module_strings: usize::MAX,
            at: vec![usize::MAX],
            by_name: HashMap::new(),
            data,
        };
        this.read(parts.types, parts.types_len)?;
        Some(this)
    }

    /// Adds the types of one module, which refer to the kernel's; `None` as of [`parse`](Self::parse).
    pub fn with_module(mut self, data: &[u8]) -> Option<Self> {
        let parts = Parts::of(data)?;
        let begin = self.data.len();
        self.module_strings = begin + parts.strings;
        self.data.extend_from_slice(data);
        self.read(begin + parts.types, parts.types_len)?;
        Some(self)
    }

    /// Reads the types in a part of the data.
    fn read(&mut self, types: usize, types_len: usize) -> Option<()> {
        let mut offset = types;
        while offset < types + types_len {
            let id = u32::try_from(self.at.len()).ok()?;
            self.at.push(offset);
            let (kind, n_members) = self.kind(id)?;
            let name = self.string(word(&self.data, offset)?)?;
            if !name.is_empty() && matches!(kind, kind::STRUCT | kind::FUNC | kind::TYPEDEF) {
                let name = name.to_vec();
                self.by_name.entry(name).or_default().push(id);
            }
            offset += 12
                + match kind {
                    kind::INT | kind::VAR | kind::DECL_TAG => 4,
                    kind::ARRAY => 12,
                    kind::STRUCT | kind::UNION | kind::DATASEC | kind::ENUM64 => 12 * n_members,
                    kind::ENUM | kind::FUNC_PROTO => 8 * n_members,
                    0 | 20.. => return None,
                    _ => 0,
                };
        }
        Some(())
    }

    /// Offset in bytes of a field of a struct, also one in an anonymous struct or
    /// union within it.
    pub fn offset(&self, name: &str, field: &str) -> Option<u32> {
        self.bit_offset(name, field).map(|bits| bits / 8)
    }

    /// As [`offset`](Self::offset), in bits: of a field that shares its byte with others.
    pub fn bit_offset(&self, name: &str, field: &str) -> Option<u32> {
        self.named(name)
            .filter(|id| self.kind(*id).is_some_and(|(kind, _)| kind == kind::STRUCT))
            .find_map(|id| self.member(id, field.as_bytes(), 0))
    }

    /// True if there is a function, or a function's type, of this name.
    pub fn has_function(&self, name: &str) -> bool {
        self.named(name).any(|id| {
            self.kind(id)
                .is_some_and(|(kind, _)| matches!(kind, kind::FUNC | kind::TYPEDEF))
        })
    }

    fn named(&self, name: &str) -> impl Iterator<Item = u32> {
        self.by_name
            .get(name.as_bytes())
            .into_iter()
            .flatten()
            .copied()
    }

    /// Offset in bits.
    fn member(&self, id: u32, field: &[u8], depth: usize) -> Option<u32> {
        if depth > MAX_DEPTH {
            return None;
        }
        let at = *self.at.get(id as usize)?;
        let (_, n_members) = self.kind(id)?;
        // With this flag, the upper byte of an offset is the size of a bit field.
        let has_sizes = word(&self.data, at + 4)? >> 31 != 0;
        (0..n_members).find_map(|index| {
            let member = at + 12 + 12 * index;
            let name = self.string(word(&self.data, member)?)?;
            let mut offset = word(&self.data, member + 8)?;
            if has_sizes {
                offset &= 0x00ff_ffff;
            }
            if name == field {
                return Some(offset);
            }
            if !name.is_empty() {
                return None;
            }
            let inner = self.composite(word(&self.data, member + 4)?)?;
            Some(offset + self.member(inner, field, depth + 1)?)
        })
    }

    /// The struct or union that a type is, through qualifiers.
    fn composite(&self, mut id: u32) -> Option<u32> {
        for _ in 0..MAX_DEPTH {
            match self.kind(id)?.0 {
                kind::STRUCT | kind::UNION => return Some(id),
                kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::RESTRICT | kind::TYPE_TAG => {
                    id = word(&self.data, *self.at.get(id as usize)? + 8)?;
                }
                _ => return None,
            }
        }
        None
    }

    /// Kind and number of members of a type.
    fn kind(&self, id: u32) -> Option<(u32, usize)> {
        let info = word(&self.data, self.at.get(id as usize)?.checked_add(4)?)?;
        Some((info >> 24 & 0x1f, (info & 0xffff) as usize))
    }

    fn string(&self, offset: u32) -> Option<&[u8]> {
        let offset = offset as usize;
        let begin = match offset.checked_sub(self.strings_len) {
            None => self.strings + offset,
            Some(behind) => self.module_strings.checked_add(behind)?,
        };
        let text = self.data.get(begin..)?;
        text.split(|byte| *byte == 0).next()
    }
}

/// Places of types and strings in the data.
struct Parts {
    types: usize,
    types_len: usize,
    strings: usize,
    strings_len: usize,
}

impl Parts {
    fn of(data: &[u8]) -> Option<Self> {
        let header = |offset: usize| word(data, offset).map(|word| word as usize);
        if u16::from_ne_bytes(data.get(..2)?.try_into().ok()?) != MAGIC {
            return None;
        }
        let begin = header(4)?;
        Some(Self {
            types: begin + header(8)?,
            types_len: header(12)?,
            strings: begin + header(16)?,
            strings_len: header(20)?,
        })
    }
}

fn word(data: &[u8], offset: usize) -> Option<u32> {
    let bytes = data.get(offset..offset.checked_add(4)?)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel() -> Types {
        Types::parse(std::fs::read("/sys/kernel/btf/vmlinux").unwrap()).unwrap()
    }

    #[test]
    fn fields_are_where_the_kernels_interface_says() {
        let types = kernel();
        // Structs whose layout user space knows, too.
        assert_eq!(types.offset("bpf_sock", "family"), Some(4));
        assert_eq!(types.offset("__sk_buff", "len"), Some(0));
        assert_eq!(types.offset("__sk_buff", "ifindex"), Some(40));
        // In an anonymous union.
        assert_eq!(types.offset("__sk_buff", "sk"), Some(168));
        assert_eq!(types.offset("__sk_buff", "no_such_field"), None);
        assert_eq!(types.offset("no_such_struct", "len"), None);
    }

    #[test]
    fn functions_are_found_by_name() {
        let types = kernel();
        assert!(types.has_function("bpf_iter_task"));
        assert!(types.has_function("btf_trace_sched_process_exec"));
        assert!(!types.has_function("no_such_function"));
    }

    /// A module's types: a struct that has one of the kernel's as its second member.
    fn module(types: &Types) -> Vec<u8> {
        const STRINGS: &[u8] = b"of_module\0first\0second\0";
        let name = |at: usize| (types.strings_len + at) as u32;
        let inner = types.named("sk_buff_head").next().unwrap();
        // A struct of 40 bytes and two members, each with name, type and offset in bits.
        let words = [
            [name(0), kind::STRUCT << 24 | 2, 40],
            [name(10), inner, 0],
            [name(16), inner, 128],
        ];
        let mut data = MAGIC.to_ne_bytes().to_vec();
        data.extend([1, 0]);
        for word in [24, 0, 36, 36, STRINGS.len() as u32] {
            data.extend(word.to_ne_bytes());
        }
        words
            .as_flattened()
            .iter()
            .for_each(|word| data.extend(word.to_ne_bytes()));
        [&data, STRINGS].concat()
    }

    #[test]
    fn types_of_a_module_go_on_behind_the_kernels() {
        let types = kernel();
        let module = module(&types);
        let types = types.with_module(&module).unwrap();
        assert_eq!(types.offset("of_module", "second"), Some(16));
        assert_eq!(types.offset("__sk_buff", "ifindex"), Some(40));
        assert!(kernel().with_module(&module[..30]).is_none());
    }

    #[test]
    fn damaged_data_is_no_panic() {
        let whole = std::fs::read("/sys/kernel/btf/vmlinux").unwrap();
        assert!(Types::parse(Vec::new()).is_none());
        assert!(Types::parse(whole[..1000].to_vec()).is_none());
        let mut damaged = whole;
        damaged[30] = 0xff;
        let _ = Types::parse(damaged);
    }
}
