//! Lines of a gateway's log: Zeek's text with its header, or a JSON object each.

use std::net::IpAddr;

use serde_json::{Map, Value};

use super::{Bytes, Ends, Mapping, Span};
use crate::{clock, policy::service::Protocol};

/// A flow as the gateway saw it, with the ends that hosts know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Both ends, who opened it first.
    pub ends: Ends,
    /// When it was.
    pub span: Span,
    /// Community ids that it may have in records: the log's own, and that of its ends.
    pub community_ids: Vec<String>,
    /// Bytes from the first end, and to it; `None` if the log has none.
    pub bytes: Option<Bytes>,
}

/// Form of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Form {
    /// Nothing was read yet.
    Unknown,
    /// Zeek's text: columns, divided by this byte, and what stands for no value.
    Columns {
        /// Byte between two columns.
        separator: u8,
        /// Text of no value.
        unset: String,
        /// Names of the columns.
        names: Vec<String>,
    },
    /// An object a line.
    Json,
}

/// Why a log, or one of its lines, cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormError {
    /// Neither of the forms.
    #[error(
        "neither Zeek's text, which begins with `#separator`, nor JSON lines; decompress it if it \
         is compressed"
    )]
    Unknown,
    /// The header lacks what a flow needs.
    #[error(
        "there is no column `{0}`; columns are {1}; say in `[gateway_log]` of trefoil.toml which \
         it is"
    )]
    NoColumn(String, String),
    /// Columns come before their names.
    #[error("there is no `#fields` before the first flow")]
    NoHeader,
    /// A line is not JSON.
    #[error("not a JSON object")]
    NotJson,
    /// A field is not there.
    #[error("`{0}` is missing")]
    Missing(String),
    /// A field is not what it should be.
    #[error("`{0}` is `{1}`, which is no {2}")]
    Wrong(String, String, &'static str),
    /// A line has another number of columns than the header.
    #[error("{0} columns instead of {1}")]
    Columns(usize, usize),
}

/// Reads the lines of one log, in order.
#[derive(Debug)]
pub struct Lines<'m> {
    mapping: &'m Mapping,
    form: Form,
}

const TAB: u8 = b'\t';

impl<'m> Lines<'m> {
    /// Lines of a log of these fields.
    #[must_use]
    pub fn new(mapping: &'m Mapping) -> Self {
        Self {
            mapping,
            form: Form::Unknown,
        }
    }

    /// True once a line has shown what the log is.
    #[must_use]
    pub fn is_known(&self) -> bool {
        self.form != Form::Unknown
    }

    /// Reads a line, without its end; `None` if it is about no flow.
    ///
    /// # Errors
    ///
    /// It is none of this log, or a fact is not what its field says.
    pub fn read(&mut self, line: &[u8]) -> Result<Option<Line>, FormError> {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.trim_ascii().is_empty() {
            return Ok(None);
        }
        if line[0] == b'#' && self.form != Form::Json {
            return self
                .header(&String::from_utf8_lossy(&line[1..]))
                .map(|()| None);
        }
        match &self.form {
            Form::Unknown if line[0] == b'{' => {
                self.form = Form::Json;
                self.json(line).map(Some)
            }
            Form::Unknown => Err(FormError::Unknown),
            Form::Json => self.json(line).map(Some),
            Form::Columns { .. } => self.columns(line).map(Some),
        }
    }

    /// Takes in a line of Zeek's header. A log that was rotated and joined has several.
    fn header(&mut self, text: &str) -> Result<(), FormError> {
        if let Some(separator) = text.strip_prefix("separator ") {
            let byte = separator
                .strip_prefix("\\x")
                .and_then(|hex| u8::from_str_radix(hex, 16).ok());
            self.form = Form::Columns {
                separator: byte.or(separator.bytes().next()).unwrap_or(TAB),
                unset: "-".to_owned(),
                names: Vec::new(),
            };
            return Ok(());
        }
        let Form::Columns {
            separator,
            unset,
            names,
        } = &mut self.form
        else {
            return Err(FormError::Unknown);
        };
        let mut words = text.split(char::from(*separator));
        match words.next() {
            Some("unset_field") => *unset = words.next().unwrap_or("-").to_owned(),
            Some("fields") => {
                *names = words.map(str::to_owned).collect();
                let mapping = self.mapping;
                let needed = [
                    &mapping.time,
                    &mapping.src_addr,
                    &mapping.src_port,
                    &mapping.dst_addr,
                    &mapping.dst_port,
                    &mapping.protocol,
                ];
                if let Some(missing) = needed.into_iter().find(|name| !names.contains(name)) {
                    return Err(FormError::NoColumn(missing.clone(), names.join(", ")));
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn columns(&self, line: &[u8]) -> Result<Line, FormError> {
        let Form::Columns {
            separator,
            unset,
            names,
        } = &self.form
        else {
            return Err(FormError::Unknown);
        };
        if names.is_empty() {
            return Err(FormError::NoHeader);
        }
        let text = String::from_utf8_lossy(line);
        let values: Vec<&str> = text.split(char::from(*separator)).collect();
        if values.len() != names.len() {
            return Err(FormError::Columns(values.len(), names.len()));
        }
        let of = |name: &str| {
            let at = names.iter().position(|own| own == name)?;
            let value = values[at];
            (value != unset && !value.is_empty()).then(|| value.to_owned())
        };
        self.line(of)
    }

    fn json(&self, line: &[u8]) -> Result<Line, FormError> {
        let object: Map<String, Value> =
            serde_json::from_slice(line).map_err(|_| FormError::NotJson)?;
        self.line(|name| match find(&object, name)? {
            Value::Null => None,
            Value::String(text) => Some(text.clone()),
            other => Some(other.to_string()),
        })
    }

    fn line(&self, of: impl Fn(&str) -> Option<String>) -> Result<Line, FormError> {
        let mapping = self.mapping;
        let needed = |name: &str| of(name).ok_or_else(|| FormError::Missing(name.to_owned()));
        let wrong = |name: &str, text: &str, what| {
            let cut: String = text.chars().take(40).collect();
            FormError::Wrong(name.to_owned(), cut, what)
        };
        let address = |name: &str| {
            let text = needed(name)?;
            let address: Result<IpAddr, _> = text.parse();
            address
                .map(|address| address.to_canonical())
                .map_err(|_| wrong(name, &text, "address"))
        };
        let port = |name: &str| match of(name) {
            None => Ok(0),
            Some(text) => text.parse().map_err(|_| wrong(name, &text, "port")),
        };
        let bytes = |name: &str| {
            let text = of(name);
            text.map(|text| {
                text.parse::<u64>()
                    .map_err(|_| wrong(name, &text, "number"))
            })
            .transpose()
        };
        let text = needed(&mapping.protocol)?;
        let protocol = Protocol::parse(&text.to_ascii_lowercase())
            .map_err(|_| wrong(&mapping.protocol, &text, "protocol"))?;
        let logged = Ends {
            protocol: protocol.0,
            src_addr: address(&mapping.src_addr)?,
            src_port: port(&mapping.src_port)?,
            dst_addr: address(&mapping.dst_addr)?,
            dst_port: port(&mapping.dst_port)?,
        };
        let text = needed(&mapping.time)?;
        let first_us = moment(&text).ok_or_else(|| wrong(&mapping.time, &text, "moment"))?;
        let lasted_us = match of(&mapping.duration) {
            None => 0,
            Some(text) => seconds_us(&text)
                .ok_or_else(|| wrong(&mapping.duration, &text, "number of seconds"))?,
        };
        let (ends, is_translated) = mapping.as_hosts_have(logged);
        // The log's id of a translated flow is another than a host's.
        let own = of(&mapping.community_id).filter(|_| !is_translated);
        let mut community_ids: Vec<String> = own.into_iter().chain(ends.community_id()).collect();
        community_ids.dedup();
        Ok(Line {
            ends,
            span: Span {
                first_us,
                last_us: first_us.saturating_add(lasted_us),
            },
            community_ids,
            bytes: match (bytes(&mapping.src_bytes)?, bytes(&mapping.dst_bytes)?) {
                (None, None) => None,
                (out, back) => Some(Bytes {
                    out: out.unwrap_or(0),
                    back: back.unwrap_or(0),
                }),
            },
        })
    }
}

/// A field by its name, or by the names of objects that it is in, with dots between them.
fn find<'v>(object: &'v Map<String, Value>, name: &str) -> Option<&'v Value> {
    if let Some(value) = object.get(name) {
        return Some(value);
    }
    let (first, rest) = name.split_once('.')?;
    find(object.get(first)?.as_object()?, rest)
}

/// Microseconds of a number of seconds, which may have a point. Nothing is rounded but what is
/// below a microsecond.
fn seconds_us(text: &str) -> Option<u64> {
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    if part.contains(['e', 'E']) || whole.contains(['e', 'E']) {
        let seconds: f64 = text.parse().ok()?;
        return (0.0..1e12)
            .contains(&seconds)
            .then_some((seconds * 1e6) as u64);
    }
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(part) {
        return None;
    }
    let mut micros = format!("{part:0<6}");
    micros.truncate(6);
    let whole: u64 = whole.parse().ok()?;
    let part: u64 = micros.parse().ok()?;
    whole.checked_mul(1_000_000)?.checked_add(part)
}

/// A moment in microseconds since 1970: seconds since then, or RFC 3339.
fn moment(text: &str) -> Option<u64> {
    seconds_us(text).or_else(|| clock::unix_us_of(text))
}
