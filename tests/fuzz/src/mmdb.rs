//! MMDB files by another way than the reader's: one address at a time, and records as
//! whatever they are.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use maxminddb::Reader;
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use trefoil::geo::Country;

use crate::geo::{Reference, Said};

/// True if the file says so of itself.
#[must_use]
pub fn is_one(input: &[u8]) -> bool {
    let tail = &input[input.len().saturating_sub(128 * 1024)..];
    tail.windows(14)
        .any(|window| window == b"\xab\xcd\xefMaxMind.com")
}

/// A database that answers for single addresses.
pub struct Database<'a> {
    reader: Reader<&'a [u8]>,
}

/// Facts that a record tells.
#[derive(Clone, Copy, Default)]
struct Told {
    /// In one country, or (`Some(None)`) in several, or anywhere.
    country: Option<Option<Country>>,
    asn: Option<u32>,
}

impl<'a> Database<'a> {
    /// Nothing if it is damaged beyond reading.
    #[must_use]
    pub fn new(input: &'a [u8]) -> Option<Self> {
        let reader = Reader::from_source(input).ok()?;
        Some(Self { reader })
    }

    /// Addresses all over the place, which no range needs to begin with.
    #[must_use]
    pub fn samples(&self) -> Vec<IpAddr> {
        let v4 = [
            0,
            1,
            0x0a00_0001,
            0x7fff_ffff,
            0x8000_0000,
            0xc000_0207,
            u32::MAX,
        ];
        let v4 = v4.map(|bits| IpAddr::V4(Ipv4Addr::from_bits(bits)));
        let v6 = ["2001:db8::1", "2001:db8:1::1", "8000::", "4000::1", "1::"];
        let v6 = v6
            .iter()
            .filter_map(|text| text.parse().ok())
            .map(IpAddr::V6);
        v4.into_iter().chain(v6).collect()
    }

    fn told(&self, address: IpAddr) -> Option<Told> {
        let version = self.reader.metadata().ip_version;
        match address.to_canonical() {
            IpAddr::V4(v4) if version == 6 => {
                let plain = self.record(IpAddr::V4(v4), 0)?;
                // The 96 bits before the address in the mapped form.
                let mapped = self.record(IpAddr::V6(v4.to_ipv6_mapped()), 96)?;
                Some(Told {
                    country: plain.country.or(mapped.country),
                    asn: plain.asn.or(mapped.asn),
                })
            }
            IpAddr::V6(_) if version == 4 => Some(Told::default()),
            address => self.record(address, 0),
        }
    }

    /// The record of the network that `address` is in, if that has at least `shortest`
    /// bits and is of the address's family. Records are decoded as a whole here and in
    /// part by the reader, so that one which is damaged tells nothing.
    fn record(&self, address: IpAddr, shortest: u8) -> Option<Told> {
        let found = self.reader.lookup(address).ok()?;
        let network = found.network().ok()?;
        if network.is_ipv4() != address.is_ipv4() || network.prefix() < shortest {
            return Some(Told::default());
        }
        let value: Option<Value> = found.decode().ok()?;
        Some(value.map(|value| value.told()).unwrap_or_default())
    }
}

impl Reference for Database<'_> {
    fn says(&self, address: IpAddr) -> Option<Said> {
        self.told(address).map(|told| Said {
            country: told.country.flatten(),
            asn: told.asn,
        })
    }

    /// Parts of the tree (6to4 and the like) may lead to the IPv4 networks, and the
    /// reader leaves these out: what is said there is meant for IPv4.
    fn may_be_left_out(&self, address: IpAddr) -> bool {
        address.to_canonical().is_ipv6()
    }
}

/// A value of a record, of which all is kept that may say something.
enum Value {
    Text(String),
    Number(u64),
    Bool(bool),
    Map(Vec<(String, Value)>),
    Other,
}

impl Value {
    /// The value of a key, if the map has it exactly once.
    fn get(&self, key: &str) -> Option<&Self> {
        let Self::Map(entries) = self else {
            return None;
        };
        let mut matching = entries.iter().filter(|(name, _)| name == key);
        let value = matching.next().map(|(_, value)| value);
        value.filter(|_| matching.next().is_none())
    }

    /// The code of a field, which is a code or a map with one, if it means something.
    fn code(&self) -> Option<&str> {
        let code = match self {
            Self::Text(code) => code,
            Self::Map(_) => match self.get("iso_code")? {
                Self::Text(code) => code,
                _ => return None,
            },
            _ => return None,
        };
        let means_something =
            Country::parse(code).is_some() || ["A1", "A2", "A3"].contains(&&**code);
        means_something.then_some(code)
    }

    fn is_set(&self) -> bool {
        match self {
            Self::Bool(is_set) => *is_set,
            Self::Text(text) => text == "true",
            _ => false,
        }
    }

    fn number(&self) -> Option<u32> {
        match self {
            Self::Number(number) => u32::try_from(*number).ok(),
            Self::Text(text) => text.strip_prefix("AS").unwrap_or(text).parse().ok(),
            _ => None,
        }
    }

    fn told(&self) -> Told {
        let code = |key| self.get(key).and_then(Self::code);
        let number = |key| self.get(key).and_then(Self::number);
        let is_set = |table: Option<&Self>, key| {
            table
                .and_then(|table| table.get(key))
                .is_some_and(Self::is_set)
        };
        let traits = self.get("traits");
        let is_anywhere = ["is_anycast", "is_satellite_provider", "is_anonymous_proxy"]
            .iter()
            .any(|key| is_set(traits, key))
            || ["is_anycast", "is_satellite"]
                .iter()
                .any(|key| is_set(Some(self), key));
        let keys = [
            "country_code",
            "country",
            "registered_country",
            "represented_country",
        ];
        let codes: Vec<&str> = keys.iter().filter_map(|key| code(key)).collect();
        let is_placed = code(keys[0]).is_some() || code(keys[1]).is_some();
        let agree = codes.iter().all(|code| *code == codes[0]);
        Told {
            country: if is_anywhere {
                Some(None)
            } else if is_placed {
                Some(Country::parse(codes[0]).filter(|_| agree))
            } else {
                None
            },
            asn: number("autonomous_system_number").or_else(|| number("asn")),
        }
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnyValue)
    }
}

struct AnyValue;

impl<'de> Visitor<'de> for AnyValue {
    type Value = Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("anything")
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(Value::Text(text.to_owned()))
    }

    /// The format has texts and bytes; bytes that are a text pass for one.
    fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Value, E> {
        Ok(str::from_utf8(bytes).map_or(Value::Other, |text| Value::Text(text.to_owned())))
    }

    fn visit_u16<E>(self, number: u16) -> Result<Value, E> {
        Ok(Value::Number(number.into()))
    }

    fn visit_u32<E>(self, number: u32) -> Result<Value, E> {
        Ok(Value::Number(number.into()))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Value, E> {
        Ok(Value::Number(number))
    }

    fn visit_i32<E>(self, number: i32) -> Result<Value, E> {
        Ok(u64::try_from(number).map_or(Value::Other, Value::Number))
    }

    fn visit_bool<E>(self, is_set: bool) -> Result<Value, E> {
        Ok(Value::Bool(is_set))
    }

    fn visit_u128<E>(self, _: u128) -> Result<Value, E> {
        Ok(Value::Other)
    }

    fn visit_f32<E>(self, _: f32) -> Result<Value, E> {
        Ok(Value::Other)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Value, E> {
        Ok(Value::Other)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Value::Other)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = items.next_entry()? {
            entries.push(entry);
        }
        Ok(Value::Map(entries))
    }
}
