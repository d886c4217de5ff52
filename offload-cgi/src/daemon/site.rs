//! One base that this daemon serves: its settings, what it needs to answer, and what it keeps open.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};
use std::time::{Duration, SystemTime};

use super::lobby::Lobby;
use crate::client::prefix;
use crate::downloads::Downloads;
use crate::exchange::{Exchange, Kept, Request};
use crate::log;
use crate::options::{DupeMode, Options};
use crate::origin::Origin;
use crate::sender::{Caps, Errand};
use crate::source::Source;
use crate::store::{Store, Unusable};

/// So many files of a base are kept open.
const MOST_KEPT: usize = 512;
/// So long at most, whatever the base says: whoever looks at the disk also says there that it is in use.
const LONGEST: Duration = Duration::from_secs(10);

/// What a site is made of, as it is configured.
#[derive(Clone, Debug)]
pub(crate) struct SiteSettings {
    /// `[base NAME]`, or nothing where there is one base and no section.
    pub(crate) name: String,
    /// The Host names that mean it, in lower case; none: all that mean no other.
    pub(crate) hosts: Vec<String>,
    pub(crate) options: Options,
    /// Bytes a second of a connection.
    pub(crate) rate: Option<u64>,
    /// The first bytes of a reply, which are not paced.
    pub(crate) burst: u64,
    /// Bytes a second of all downloads of a client.
    pub(crate) client_rate: Option<u64>,
}

/// A base that is served.
pub(crate) struct Site {
    pub(crate) settings: SiteSettings,
    /// No other site has had it.
    pub(crate) number: usize,
    origin: Origin,
    store: Option<Store>,
    downloads: Option<&'static Downloads>,
    /// The open bodies; none where nobody asks for them any more.
    kept: RwLock<Option<HashMap<String, Arc<Kept>>>>,
    /// Who waits to hear what the base says about which path.
    pub(crate) lobby: Lobby<Box<Errand>>,
    /// What the base is to be asked about although nobody waits for it.
    renewing: Mutex<HashSet<String>>,
    /// Whole bodies that are on their way to somebody: who comes for one of them needs no descriptor of his own.
    read: Mutex<HashMap<String, Weak<Source<'static>>>>,
}

/// All sites that this process has ever had: running downloads may still use them, so none is taken away, and one
/// that comes again unchanged is used again. What a change of settings leaves behind is a few kilobytes.
#[derive(Default)]
pub(crate) struct Sites {
    all: Mutex<Vec<(String, &'static Site)>>,
    tables: Mutex<HashMap<(PathBuf, u32), &'static Downloads>>,
}

impl Sites {
    /// The site with these settings.
    ///
    /// # Errors
    /// A sentence, when it cannot be served.
    pub(crate) fn site(&self, settings: &SiteSettings) -> Result<&'static Site, String> {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        let words = format!("{settings:?}");
        let known = all.iter().find(|(known, site)| {
            *known == words && (site.store.is_some() || settings.options.cache.is_none())
        });
        if let Some((_, site)) = known {
            return Ok(site);
        }
        let options = &settings.options;
        let origin = Origin::new(options)?;
        let store = match Store::open(options) {
            _ if options.document_root.is_some() => None,
            Ok(store) => Some(store),
            Err(Unusable::Wrong(sentence)) => return Err(sentence),
            Err(Unusable::Missing(sentence)) => {
                log::line(&format!("{sentence}; nothing is stored until a reload (SIGHUP)"));
                None
            }
        };
        let site: &'static Site = Box::leak(Box::new(Site {
            settings: settings.clone(),
            number: all.len(),
            origin,
            downloads: self.downloads(options, store.is_some()),
            store,
            kept: RwLock::new(Some(HashMap::new())),
            lobby: Lobby::default(),
            renewing: Mutex::default(),
            read: Mutex::default(),
        }));
        all.push((words, site));
        Ok(site)
    }

    /// Closes what sites keep open that nobody can ask for any more.
    pub(crate) fn only(&self, used: &[&'static Site]) {
        let all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        for (_, site) in all.iter() {
            let is_used = used.iter().any(|other| other.number == site.number);
            let mut kept = site.kept.write().unwrap_or_else(PoisonError::into_inner);
            if is_used {
                kept.get_or_insert_default();
            } else {
                *kept = None;
            }
        }
    }

    /// The table of downloads, one for each cache: a process is one owner in it.
    fn downloads(&self, options: &Options, stored: bool) -> Option<&'static Downloads> {
        let counted = options.max_dupes > 0 && options.dupe_mode != DupeMode::Share;
        let folder = options.cache.as_ref().filter(|_| counted && stored)?;
        let mut tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (folder.clone(), options.max_clients);
        if let Some(table) = tables.get(&key) {
            return Some(table);
        }
        match Downloads::open(folder, options.max_clients) {
            Ok(downloads) => {
                let downloads: &'static Downloads = Box::leak(Box::new(downloads));
                tables.insert(key, downloads);
                Some(downloads)
            }
            Err(error) => {
                log::line(&format!("OFFLOAD_MAX_DUPES: nobody is counted: {error}"));
                None
            }
        }
    }
}

impl Site {
    pub(crate) fn exchange(&'static self) -> Exchange<'static> {
        Exchange {
            options: &self.settings.options,
            origin: &self.origin,
            store: self.store.as_ref(),
        }
    }

    pub(crate) fn options(&self) -> &Options {
        &self.settings.options
    }

    /// Whether there is a cache.
    pub(crate) fn is_stored(&self) -> bool {
        self.store.is_some()
    }

    /// The table that counts the connections of a client for a file, if they are counted.
    pub(crate) fn downloads(&self) -> Option<&'static Downloads> {
        self.downloads
    }

    /// What a download may take.
    pub(crate) fn caps(&self) -> Caps {
        let shared = self.options().dupe_mode == DupeMode::Share;
        Caps {
            own: self.settings.rate,
            client: self.settings.client_rate,
            file: self.settings.rate.filter(|_| shared),
        }
    }

    /// The open body of a path, while it may be served without asking anybody.
    pub(crate) fn kept(&self, path: &str, now: SystemTime) -> Option<Arc<Kept>> {
        let kept = self.kept.read().unwrap_or_else(PoisonError::into_inner);
        kept.as_ref()?.get(path).filter(|kept| now < kept.until).cloned()
    }

    /// Keeps the body of a request open, if it may be served without asking anybody for a while.
    pub(crate) fn keep(&'static self, request: &Request) {
        let Some(mut kept) = self.exchange().keep(request) else { return };
        let now = SystemTime::now();
        kept.until = kept.until.min(now.checked_add(LONGEST).unwrap_or(now));
        kept.source = self.share(request.path.as_str(), kept.source);
        // What goes is closed when others can go on: that may take a look at the disk.
        let mut gone = Vec::new();
        let mut guard = self.kept.write().unwrap_or_else(PoisonError::into_inner);
        let Some(all) = guard.as_mut() else { return };
        if all.len() >= MOST_KEPT {
            gone.extend(all.extract_if(|_, kept| now >= kept.until).map(|(_, kept)| kept));
        }
        if all.len() < MOST_KEPT {
            gone.extend(all.insert(request.path.as_str().to_owned(), Arc::new(kept)));
        }
        drop(guard);
        drop(gone);
    }

    /// The same body, open already if somebody is being sent it.
    pub(crate) fn share(&self, path: &str, source: Arc<Source<'static>>) -> Arc<Source<'static>> {
        let known = {
            let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
            let known = read.get(path).and_then(Weak::upgrade);
            match known {
                Some(known) if known.is_file_of(&source) => return known,
                known => {
                    read.insert(path.to_owned(), Arc::downgrade(&source));
                    known
                }
            }
        };
        drop(known);
        source
    }

    /// Asks the base about a file that was served although it should have been asked before, unless that is
    /// on its way. `later` has it done by a thread that may wait.
    pub(crate) fn renew(
        &'static self,
        request: Arc<Request>,
        later: impl FnOnce(Box<dyn FnOnce() + Send>),
    ) {
        let path = request.path.as_str().to_owned();
        let mut renewing = self.renewing.lock().unwrap_or_else(PoisonError::into_inner);
        if !renewing.insert(path) {
            return;
        }
        drop(renewing);
        later(Box::new(move || {
            let begun = Renewal { site: self, path: request.path.as_str().to_owned() };
            self.exchange().revalidate(&request);
            drop(begun);
        }));
    }

    /// Whether there is anything to be closed some day.
    pub(crate) fn has_kept(&self) -> bool {
        let kept = self.kept.read().unwrap_or_else(PoisonError::into_inner);
        kept.as_ref().is_some_and(|kept| !kept.is_empty())
    }

    /// Closes what may not be served any more.
    pub(crate) fn tidy(&self, now: SystemTime) {
        let expired = {
            let kept = self.kept.read().unwrap_or_else(PoisonError::into_inner);
            kept.iter().flat_map(HashMap::values).any(|kept| now >= kept.until)
        };
        if expired {
            let mut kept = self.kept.write().unwrap_or_else(PoisonError::into_inner);
            let gone: Vec<_> = kept
                .as_mut()
                .map(|kept| kept.extract_if(|_, kept| now >= kept.until).collect())
                .unwrap_or_default();
            drop(kept);
            drop(gone);
        }
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        read.retain(|_, source| source.strong_count() > 0);
    }
}

/// A file about which the base is being asked; over when it is dropped.
struct Renewal {
    site: &'static Site,
    path: String,
}

impl Drop for Renewal {
    fn drop(&mut self) {
        let mut renewing = self.site.renewing.lock().unwrap_or_else(PoisonError::into_inner);
        renewing.remove(&self.path);
    }
}

/// What makes one client, for rates and caps: a Unix socket's peer is the proxy before it, one client.
pub(crate) fn client_of(address: Option<std::net::IpAddr>) -> [u8; 8] {
    address.map_or([0xff; 8], prefix)
}
