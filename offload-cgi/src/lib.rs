//! The offload host's program: serves a base server's files from a cache on disk.
//!
//! As a CGI it answers one request: `cgi` reads it, `exchange` asks the base if need be (`ask`, `origin`) and
//! finds the bytes (`store`), `source` reads them while other processes of this program (`fill`) write them.
#![deny(unsafe_code)]

mod ask;
mod body;
mod breaker;
mod cgi;
mod client;
mod daemon;
mod downloads;
mod exchange;
mod failure;
mod fill;
mod freshness;
#[cfg(fuzzing)]
pub mod fuzzing;
mod head;
mod http;
mod local;
mod log;
mod options;
mod origin;
mod process;
mod reply;
mod representation;
mod sender;
#[allow(unsafe_code)] // Mapped memory, and nothing else.
mod shared;
mod source;
mod store;
mod tally;
mod tools;

use std::ffi::OsString;
use std::process::ExitCode;

use lexopt::{Arg, Parser};
use offload_core::units::Span;

use crate::daemon::{Flags, Settings};
use crate::options::Options;
use crate::tools::{Tool, Wishes};

/// What the command line asks for.
enum Mode {
    /// The environment decides; flags win over its settings.
    Serve(Vec<(String, OsString)>),
    /// Serve as a daemon, or say whether it could.
    Daemon(Flags),
    Check(Flags),
    /// Fill the cache: for the program itself.
    Fill(Vec<OsString>),
    /// Look after the cache, with these settings.
    Look(Tool, Wishes, Vec<(String, OsString)>),
    Help,
    Version,
}

/// The program: what `main` does.
pub fn main() -> ExitCode {
    if cgi::is_here() {
        return cgi::run(cgi_options);
    }
    match mode(Parser::from_env()) {
        Ok(Mode::Serve(_)) => say(true),
        Ok(Mode::Daemon(flags)) => daemon::serve(&flags),
        Ok(Mode::Check(flags)) => daemon::check(&flags),
        Ok(Mode::Fill(words)) => fill(&words),
        Ok(Mode::Look(tool, wishes, flags)) => {
            let options = Options::read(std::env::vars_os(), &flags);
            match options.and_then(|options| tool.run(&options, wishes)) {
                Ok(true) => ExitCode::SUCCESS,
                Ok(false) => ExitCode::FAILURE,
                Err(sentence) => {
                    log::line(&sentence);
                    ExitCode::from(2)
                }
            }
        }
        Ok(Mode::Help) => say(false),
        Ok(Mode::Version) => {
            println!("offload-cgi {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        Err(sentence) => {
            log::line(&sentence);
            ExitCode::from(2)
        }
    }
}

/// The settings of a CGI: the environment, and the flags of a script that calls this program.
fn cgi_options() -> Result<Options, String> {
    let mut flags = Vec::new();
    if cgi::arguments_are_ours() {
        match mode(Parser::from_env())? {
            Mode::Serve(found) => flags = found,
            _ => return Err("a CGI takes settings only, such as --base; see --help".to_owned()),
        }
    }
    Options::read(std::env::vars_os(), &flags)
}

fn fill(words: &[OsString]) -> ExitCode {
    match Options::read(std::env::vars_os(), &[]).and_then(|options| fill::run(words, &options)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(sentence) => {
            log::line(&sentence);
            ExitCode::FAILURE
        }
    }
}

/// Prints how to use the program; as a complaint when it was used in another way.
fn say(complain: bool) -> ExitCode {
    let text = format!(
        "Serves the files of a base server from a cache on disk, as a CGI under httpd:\n\
         \n\
         \x20 AliasMatch ^.*$ /usr/lib/cgi-bin/offload-cgi\n\
         \x20 SetEnv OFFLOAD_BASE http://base.example.org\n\
         \x20 SetEnv OFFLOAD_CACHE /var/cache/offload\n\
         \x20 SetEnv ap_trust_cgilike_cl 1\n\
         \n\
         Each setting is a variable of the environment or a flag, which wins:\n\
         \n\
         {}\x20 --help, --version\n\
         \n\
         By hand, with the same settings, to look after the cache:\n\
         \n\
         \x20 offload-cgi list      each file: whole, part or old; bytes that are there; of how many; URL\n\
         \x20 offload-cgi verify    read everything; what is damaged is put aside; 1 if something was\n\
         \x20 offload-cgi clean     ask the base about each file; what is gone or changed is removed\n\
         \x20     --urls              print what was found and the URL\n\
         \x20     --short             also remove files that are not whole\n\
         \x20     --younger-than 7d   only files that were asked about within this time\n\
         \n\
         Or without a web server:\n\
         \n\
         \x20 offload-cgi serve --listen 0.0.0.0:80 --base http://base.example.org --cache /var/cache/offload\n\
         \x20 offload-cgi serve --config /etc/offload.conf\n\
         \x20 offload-cgi check --config /etc/offload.conf\n\
         \n\
         It has the settings above and these; in the file they are 'cache-max = 100G', a line each:\n\
         \n\
         {}",
        Options::help(),
        Settings::help()
    );
    if complain {
        eprint!("{text}");
        return ExitCode::from(2);
    }
    print!("{text}");
    ExitCode::SUCCESS
}

fn mode(mut parser: Parser) -> Result<Mode, String> {
    let mut flags = Vec::new();
    let mut tool = None;
    let mut wishes = Wishes::default();
    while let Some(argument) = parser.next().map_err(|error| error.to_string())? {
        match argument {
            Arg::Long("help") | Arg::Short('h') => return Ok(Mode::Help),
            Arg::Long("version") | Arg::Short('V') => return Ok(Mode::Version),
            Arg::Long(name) if Options::has_flag(name) => {
                let name = name.to_owned();
                flags.push((name, parser.value().map_err(|error| error.to_string())?));
            }
            Arg::Long("urls") if tool == Some(Tool::Clean) => wishes.urls = true,
            Arg::Long("short") if tool == Some(Tool::Clean) => wishes.short = true,
            Arg::Long("younger-than") if tool == Some(Tool::Clean) => {
                let span = parser.value().map_err(|error| error.to_string())?;
                let span = Span::parse(&span.to_string_lossy());
                wishes.younger_than =
                    Some(span.map_err(|error| format!("--younger-than: {error}"))?);
            }
            Arg::Value(word) if word == fill::WORD && flags.is_empty() && tool.is_none() => {
                let words = parser.raw_args().map_err(|error| error.to_string())?;
                return Ok(Mode::Fill(words.collect()));
            }
            Arg::Value(word) if tool.is_none() && word.to_str().and_then(Tool::of).is_some() => {
                tool = word.to_str().and_then(Tool::of);
            }
            Arg::Value(word) if word == daemon::WORD && flags.is_empty() => {
                return flags_of_daemon(parser).map(Mode::Daemon);
            }
            Arg::Value(word) if word == daemon::CHECK && flags.is_empty() => {
                return flags_of_daemon(parser).map(Mode::Check);
            }
            other => return Err(format!("{}; see --help", other.unexpected())),
        }
    }
    Ok(match tool {
        Some(tool) => Mode::Look(tool, wishes, flags),
        None => Mode::Serve(flags),
    })
}

/// The flags behind `serve` or `check`.
fn flags_of_daemon(mut parser: Parser) -> Result<Flags, String> {
    let mut flags = Flags::new();
    while let Some(argument) = parser.next().map_err(|error| error.to_string())? {
        match argument {
            Arg::Long(name) if Settings::has_flag(name) => {
                let name = name.to_owned();
                flags.push((name, parser.value().map_err(|error| error.to_string())?));
            }
            other => return Err(format!("{}; see --help", other.unexpected())),
        }
    }
    Ok(flags)
}
