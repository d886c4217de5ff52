//! Joining the readers of a generation, and making what they need of it.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::thread;
use std::time::Duration;

use super::{Flaw, Generation, Growing, Joined, Whole, sound};
use crate::http::Part;
use crate::log;
use crate::representation::Representation;
use crate::store::extents::{Blocks, Extents, ExtentsOf, LONGEST_EXTENTS};
use crate::store::files;
use crate::store::locks::Locks;
use crate::store::progress::Progress;

impl Generation {
    /// Joins the readers of this generation, which `found` describes: makes what is missing of it, and
    /// says that these parts are wanted.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub(crate) fn join(&self, found: &Representation, wanted: &[Part]) -> io::Result<Joined> {
        self.object.prepare()?;
        let blocks = Blocks::of(found.length);
        loop {
            let locks = self.locks()?;
            let mut joined = true;
            for part in wanted {
                let last = blocks.of_offset(part.end().saturating_sub(1));
                joined &= locks.want(blocks.of_offset(part.first), last.saturating_add(1))?;
            }
            if !joined || !locks.is_at(&self.file("lock")) {
                // Somebody removes it, which does not take long.
                thread::sleep(Duration::from_millis(1));
                continue;
            }
            if let Some(joined) = self.look()? {
                return Ok(joined.with(locks));
            }
            locks.set_up()?;
            let made = self.make(found);
            locks.end_set_up();
            made?;
            if let Some(joined) = self.look()? {
                return Ok(joined.with(locks));
            }
        }
    }

    fn look(&self) -> io::Result<Option<Looked>> {
        if let Some(growing) = self.open_growing()? {
            return Ok(Some(Looked::Growing(growing)));
        }
        // What is damaged is put aside by who sets up.
        Ok(sound(self.open_whole())?.map(Looked::Whole))
    }

    /// Makes what is missing, or damaged. The caller sets up.
    fn make(&self, found: &Representation) -> io::Result<()> {
        match self.record() {
            Ok(Some(_)) => {}
            Ok(None) => self.write_record(found)?,
            Err(flaw) => self.begin_anew(flaw, found)?,
        }
        match self.open_whole() {
            Ok(Some(_)) => return Ok(()),
            Ok(None) => {}
            Err(flaw) => self.begin_anew(flaw, found)?,
        }
        if self.open_growing()?.is_some() {
            return Ok(());
        }
        if found.length == 0 {
            return files::create(&self.file("body")).map(drop);
        }
        let path = self.file("part");
        let known = sound(self.open_if_there("part", files::open))?;
        let known = known.map(|part| part.metadata()).transpose()?;
        let known = known.filter(|part| part.len() == found.length);
        let (part, extents) = match known {
            Some(part) if !self.is_given_up(&part)? => {
                let extents = self.durable(&part)?;
                (part, extents)
            }
            _ => {
                self.end_growing()?;
                let part = files::create(&path)?;
                if let Err(error) = part.set_len(found.length) {
                    files::remove(&path)?;
                    return Err(error);
                }
                (part.metadata()?, Extents::none(found.length))
            }
        };
        let map = Progress::print(self.identity(&part)?, &extents);
        files::note(&self.file("map"), &map)
    }

    /// Puts aside what is damaged, and describes the generation anew.
    fn begin_anew(&self, flaw: Flaw, found: &Representation) -> io::Result<()> {
        match flaw {
            Flaw::Damaged(damage) => self.put_aside(&damage),
            Flaw::Unreadable(error) => return Err(error),
        }
        self.write_record(found)
    }

    /// Whether the body that grows here will not be continued.
    fn is_given_up(&self, part: &Metadata) -> io::Result<bool> {
        let Some(map) = sound(self.open_if_there("map", files::open_to_write))? else {
            return Ok(false);
        };
        let progress = Progress::open(map, self.identity(part)?)?;
        Ok(progress.is_some_and(|progress| progress.is_given_up()))
    }

    /// What of the growing body has survived the last reboot.
    fn durable(&self, part: &Metadata) -> io::Result<Extents> {
        let none = Extents::none(part.len());
        let path = self.file("extents");
        let Some(file) = sound(self.open_if_there("extents", files::open))? else {
            return Ok(none);
        };
        let text = match files::read_at_most(file, LONGEST_EXTENTS) {
            Err(error) if error.kind() != io::ErrorKind::InvalidData => return Err(error),
            text => text.unwrap_or_default(),
        };
        Ok(Extents::parse(&text, self.extents_of(part)).unwrap_or_else(|error| {
            log::line(&format!(
                "'{}' is damaged: {error}; the file is fetched anew",
                path.display()
            ));
            none
        }))
    }

    pub(super) fn extents_of(&self, part: &Metadata) -> ExtentsOf<'_> {
        ExtentsOf { generation: &self.name, inode: part.ino(), length: part.len() }
    }
}

enum Looked {
    Whole(Whole),
    Growing(Growing),
}

impl Looked {
    fn with(self, locks: Locks) -> Joined {
        match self {
            Self::Whole(whole) => Joined::Whole(whole),
            Self::Growing(growing) => Joined::Growing(growing, locks),
        }
    }
}
