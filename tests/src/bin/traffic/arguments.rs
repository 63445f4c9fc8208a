//! Command-line arguments: words in order, and options by name.

use std::str::FromStr;

use crate::Failure;

/// Arguments that nobody has asked for yet.
#[derive(Debug)]
pub struct Arguments {
    left: Vec<String>,
}

impl Arguments {
    pub fn new(left: Vec<String>) -> Self {
        Self { left }
    }

    /// The next word. Options come after the words.
    pub fn word(&mut self, what: &str) -> Result<String, Failure> {
        match self.left.first() {
            Some(word) if !word.starts_with("--") => Ok(self.left.remove(0)),
            _ => Err(Failure::Usage(format!("missing {what}"))),
        }
    }

    /// The next word as a value.
    pub fn value<T: FromStr>(&mut self, what: &str) -> Result<T, Failure> {
        let word = self.word(what)?;
        word.parse()
            .map_err(|_| Failure::Usage(format!("{word:?} is not {what}")))
    }

    /// The option `--name VALUE`.
    pub fn option<T: FromStr>(&mut self, name: &str) -> Result<Option<T>, Failure> {
        let Some(at) = self.left.iter().position(|word| word == name) else {
            return Ok(None);
        };
        self.left.remove(at);
        if at == self.left.len() {
            return Err(Failure::Usage(format!("{name} needs a value")));
        }
        let word = self.left.remove(at);
        word.parse()
            .map(Some)
            .map_err(|_| Failure::Usage(format!("{name} {word:?} is not understood")))
    }

    /// All values of an option that may be repeated.
    pub fn options(&mut self, name: &str) -> Result<Vec<String>, Failure> {
        let mut all = Vec::new();
        while let Some(value) = self.option(name)? {
            all.push(value);
        }
        Ok(all)
    }

    /// The option `--name`.
    pub fn flag(&mut self, name: &str) -> bool {
        let at = self.left.iter().position(|word| word == name);
        at.map(|at| self.left.remove(at)).is_some()
    }

    /// Complains about what nobody asked for.
    pub fn done(&self) -> Result<(), Failure> {
        match self.left.first() {
            None => Ok(()),
            Some(word) => Err(Failure::Usage(format!("{word:?} is not understood here"))),
        }
    }
}
