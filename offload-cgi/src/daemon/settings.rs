//! File, environment and flags -> what the daemon does: one name everywhere, a row a setting, and a sentence with
//! its place for each mistake.

mod rows;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use offload_core::units::{Bytes, Span};

use self::rows::{Draft, REPEATED, ROWS, Scope};
use super::file::{self, Contents, Section};
use super::journal::Format;
use super::listen::Address;
use super::site::SiteSettings;
use crate::options::{DupeMode, Options};

/// What the daemon was told.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) listen: Vec<Address>,
    pub(crate) admin: Vec<Address>,
    pub(crate) user: Option<String>,
    pub(crate) drain: Duration,
    pub(crate) workers: usize,
    pub(crate) senders: usize,
    pub(crate) max_connections: usize,
    pub(crate) max_client_connections: u32,
    pub(crate) header_timeout: Duration,
    pub(crate) idle_timeout: Duration,
    pub(crate) min_rate: u64,
    pub(crate) log_format: Format,
    pub(crate) sites: Vec<SiteSettings>,
    pub(crate) warnings: Vec<String>,
}

/// Values that win over the file: by key.
pub(crate) type Flags = Vec<(String, OsString)>;

impl Settings {
    /// Reads everything. Flags win over the environment, which wins over the file; there a section wins
    /// over what stands above all sections.
    ///
    /// # Errors
    /// One sentence with its place for each mistake.
    pub(crate) fn read(
        environment: impl IntoIterator<Item = (OsString, OsString)>,
        flags: &Flags,
    ) -> Result<Self, Vec<String>> {
        let environment: BTreeMap<String, OsString> = environment
            .into_iter()
            .filter_map(|(name, value)| Some((key_of(name.to_str()?)?, value)))
            .collect();
        let find = |key: &str| {
            let flag = flags.iter().rfind(|(name, _)| name == key).map(|(_, value)| value);
            flag.or_else(|| environment.get(key))
        };
        let path = find("config").map(Path::new);
        let contents = match path {
            None => Contents::default(),
            Some(path) => match std::fs::read_to_string(path) {
                Ok(text) => file::parse(&text),
                Err(error) => {
                    return Err(vec![format!("{}: cannot be read: {error}", path.display())]);
                }
            },
        };
        let mut reader = Reader { path, environment: &environment, flags, errors: Vec::new() };
        reader.check(&contents);
        let mut draft = Draft::default();
        reader.apply(&mut draft, Scope::Daemon, &contents, None);
        let mut sites = Vec::new();
        if contents.sections.is_empty() {
            sites.extend(reader.site(&contents, None));
        }
        for section in &contents.sections {
            sites.extend(reader.site(&contents, Some(section)));
        }
        let Reader { mut errors, .. } = reader;
        if sites.iter().filter(|site| site.hosts.is_empty()).count() > 1 {
            errors
                .push("more than one section has no 'host'; only one can take the rest".to_owned());
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        let mut warnings: Vec<String> = environment
            .keys()
            .filter(|key| !is_known(key))
            .map(|key| format!("{} is no setting and is ignored", variable_of(key)))
            .collect();
        let unlimited =
            |site: &&SiteSettings| site.options.dupe_mode == DupeMode::Share && site.rate.is_none();
        if sites.iter().any(|site| unlimited(&site)) {
            warnings.push("dupe-mode share divides 'rate', which is not set".to_owned());
        }
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let duration = |span: Option<Span>, default: u64| {
            span.map_or(Duration::from_secs(default), Span::duration)
        };
        Ok(Self {
            listen: draft.listen,
            admin: draft.admin,
            user: draft.user,
            drain: duration(draft.drain, 300),
            workers: draft.workers.unwrap_or(32) as usize,
            senders: draft.senders.map_or(cores.min(32), |count| count as usize),
            max_connections: draft.max_connections.unwrap_or(0) as usize,
            max_client_connections: draft.max_client_connections.unwrap_or(0),
            header_timeout: duration(draft.header_timeout, 10),
            idle_timeout: duration(draft.idle_timeout, 60),
            min_rate: draft.min_rate.map_or(100, Bytes::count),
            log_format: draft.log_format.unwrap_or_default(),
            sites,
            warnings,
        })
    }

    /// The text that `--help` prints about the daemon's own settings.
    pub(crate) fn help() -> String {
        let mut text = String::new();
        for row in ROWS.iter().filter(|row| row.scope != Scope::Section) {
            let variable = variable_of(row.key);
            let _ = writeln!(text, "  --{:<22} {variable:<30} {}", row.key, row.help);
        }
        text
    }

    /// Whether there is a flag of this name.
    pub(crate) fn has_flag(flag: &str) -> bool {
        is_known(flag) && flag != "host"
    }
}

/// What reads, and what it has found wrong.
struct Reader<'a> {
    path: Option<&'a Path>,
    environment: &'a BTreeMap<String, OsString>,
    flags: &'a Flags,
    errors: Vec<String>,
}

impl Reader<'_> {
    /// Looks at every single value.
    fn check(&mut self, contents: &Contents) {
        for (line, error) in &contents.errors {
            let place = self.place(*line);
            self.errors.push(format!("{place}: {error}"));
        }
        for (key, value) in self.environment {
            if let Some(Err(error)) = check(key, value) {
                self.errors.push(format!("{}: {error}", variable_of(key)));
            }
        }
        for (key, value) in self.flags {
            match check(key, value) {
                Some(Ok(())) => {}
                Some(Err(error)) => self.errors.push(format!("--{key}: {error}")),
                None => self.errors.push(format!("--{key} is no setting; see --help")),
            }
        }
        self.check_section(&contents.top, !contents.sections.is_empty());
        for section in &contents.sections {
            self.check_section(section, true);
        }
        if !contents.sections.is_empty() {
            let given = self.environment.contains_key("base")
                || self.flags.iter().any(|(key, _)| key == "base");
            if given {
                self.errors.push(
                    "base is set by the environment or a flag, but the file has sections, each \
                     with a base of its own"
                        .to_owned(),
                );
            }
        }
    }

    fn check_section(&mut self, section: &Section, has_sections: bool) {
        let in_section = !section.name.is_empty();
        for (index, entry) in section.entries.iter().enumerate() {
            let key = entry.key.as_str();
            let scope = ROWS.iter().find(|row| row.key == key).map_or(Scope::Base, |row| row.scope);
            let error = match check(key, OsStr::new(&entry.value)) {
                None => Some(format!("'{key}' is no setting; see --help")),
                Some(_) if key == "config" => Some("a file cannot name another one".to_owned()),
                Some(Err(error)) => Some(format!("{key}: {error}")),
                Some(Ok(())) if in_section && scope == Scope::Daemon => {
                    Some(format!("'{key}' is about the daemon; put it above all sections"))
                }
                Some(Ok(())) if !in_section && scope == Scope::Section => {
                    Some(format!("'{key}' belongs into a section [base NAME]"))
                }
                Some(Ok(())) if !in_section && has_sections && key == "base" => {
                    Some("'base' belongs into each section".to_owned())
                }
                Some(Ok(()))
                    if !REPEATED.contains(&key)
                        && section.entries[..index].iter().any(|other| other.key == key) =>
                {
                    Some(format!("'{key}' is set already"))
                }
                Some(Ok(())) => None,
            };
            if let Some(error) = error {
                let place = self.place(entry.line);
                self.errors.push(format!("{place}: {error}"));
            }
        }
    }

    /// Sets what holds of one scope. What is wrong has been noted.
    fn apply(
        &self,
        draft: &mut Draft,
        scope: Scope,
        contents: &Contents,
        section: Option<&Section>,
    ) {
        for row in ROWS.iter().filter(|row| row.scope == scope) {
            for value in self.values(row.key, contents, section) {
                if let Some(value) = value.to_str() {
                    let _ = (row.set)(draft, value);
                }
            }
        }
    }

    /// The values of a setting that hold: those of whoever wins.
    fn values(&self, key: &str, contents: &Contents, section: Option<&Section>) -> Vec<OsString> {
        let flags: Vec<OsString> =
            self.flags.iter().filter(|(name, _)| name == key).map(|(_, v)| v.clone()).collect();
        if !flags.is_empty() {
            return flags;
        }
        if let Some(value) = self.environment.get(key) {
            return vec![value.clone()];
        }
        let of = |section: &Section| -> Vec<OsString> {
            let entries = section.entries.iter().filter(|entry| entry.key == key);
            entries.map(|entry| OsString::from(&entry.value)).collect()
        };
        let found = section.map(of).unwrap_or_default();
        if found.is_empty() { of(&contents.top) } else { found }
    }

    fn site(&mut self, contents: &Contents, section: Option<&Section>) -> Option<SiteSettings> {
        let mut draft = Draft::default();
        self.apply(&mut draft, Scope::Base, contents, section);
        self.apply(&mut draft, Scope::Section, contents, section);
        let variables = Options::flags().filter_map(|key| {
            let value = self.values(key, contents, section).pop()?;
            Some((OsString::from(variable_of(key)), value))
        });
        let variables: Vec<_> = variables.collect();
        let name = section.map_or(String::new(), |section| section.name.clone());
        match Options::read(variables, &[]) {
            Ok(options) => {
                let rate = |bytes: Option<Bytes>| bytes.map(Bytes::count).filter(|rate| *rate > 0);
                Some(SiteSettings {
                    name,
                    hosts: draft.hosts,
                    options,
                    rate: rate(draft.rate),
                    burst: draft.burst.map_or(0, Bytes::count),
                    client_rate: rate(draft.client_rate),
                })
            }
            // Every single value has been looked at; so this is about what is missing.
            Err(error) if self.errors.is_empty() || error.contains("not set") => {
                let place =
                    section.map(|section| format!("{}: [base {name}]: ", self.place(section.line)));
                self.errors.push(format!("{}{error}", place.unwrap_or_default()));
                None
            }
            Err(_) => None,
        }
    }

    fn place(&self, line: usize) -> String {
        format!("{}:{line}", self.path.unwrap_or(Path::new("")).display())
    }
}

/// Whether a value will do; `None` when there is no such setting.
fn check(key: &str, value: &OsStr) -> Option<Result<(), String>> {
    if key == "config" {
        return Some(Ok(()));
    }
    let Some(row) = ROWS.iter().find(|row| row.key == key) else {
        return Options::check(key, value);
    };
    let Some(text) = value.to_str() else {
        return Some(Err(format!("'{}' is not text", value.display())));
    };
    Some((row.set)(&mut Draft::default(), text))
}

fn is_known(key: &str) -> bool {
    key == "config" || ROWS.iter().any(|row| row.key == key) || Options::has_flag(key)
}

/// `OFFLOAD_MAX_DUPES` -> `max-dupes`.
fn key_of(variable: &str) -> Option<String> {
    let name = variable.strip_prefix("OFFLOAD_").filter(|_| variable != super::UPGRADE)?;
    Some(name.to_ascii_lowercase().replace('_', "-"))
}

fn variable_of(key: &str) -> String {
    format!("OFFLOAD_{}", key.to_ascii_uppercase().replace('-', "_"))
}

#[cfg(test)]
mod tests;
