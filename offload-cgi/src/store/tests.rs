//! Keys, publishing, and what becomes of older generations.

use std::io::Read as _;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _, symlink};

use super::*;
use crate::http::{EntityTag, Part, Validators};
use crate::representation::Representation;

fn store(folder: &Path) -> Store {
    Store { root: folder.to_owned(), cache_max: Share::Percent(100), keep_free: Share::Percent(0) }
}

fn object(folder: &Path) -> Object {
    let object = store(folder).object(&Base::parse("http://base.test").unwrap(), "/a");
    object.prepare().unwrap();
    object
}

fn version(etag: &str, length: usize) -> Representation {
    Representation {
        validators: Validators { etag: EntityTag::parse(etag), ..Validators::default() },
        length: length as u64,
        ..Representation::default()
    }
}

/// Joins the readers of a generation that is not whole.
fn join(generation: &Generation, version: &Representation) -> (Growing, Locks) {
    match generation.join(version, &[Part::whole(version.length)]).unwrap() {
        Joined::Growing(growing, locks) => (growing, locks),
        Joined::Whole(_) => panic!("it is whole"),
    }
}

/// Fills a generation as the filler does.
fn publish(object: &Object, etag: &str, text: &str, checked: SystemTime) -> Generation {
    let version = version(etag, text.len());
    let generation = object.generation(&version.generation());
    let (growing, _locks) = join(&generation, &version);
    growing.file.write_all_at(text.as_bytes(), 0).unwrap();
    growing.progress.set_landed(0, u32::try_from(text.len()).unwrap());
    generation.publish(&growing.file, File::sync_data).unwrap();
    object.confirm(generation.name(), checked).unwrap();
    generation
}

fn text(generation: &Generation) -> Option<String> {
    let mut text = String::new();
    generation.open_whole().unwrap()?.file.read_to_string(&mut text).unwrap();
    Some(text)
}

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000 + seconds)
}

#[test]
fn a_key_is_made_of_base_and_path_and_of_no_byte_of_them() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let key = |base: &str, path: &str| store.object(&Base::parse(base).unwrap(), path).key;
    let one = key("http://base.test", "/a");
    assert_eq!(one, key("HTTP://Base.test:80/", "/a"));
    assert_eq!(one.len(), 64);
    assert!(one.bytes().all(|byte| byte.is_ascii_hexdigit()));
    for (base, path) in
        [("https://base.test", "/a"), ("http://base.test:81", "/a"), ("http://base.test", "/b")]
    {
        assert_ne!(one, key(base, path), "{base}{path}");
    }
}

#[test]
fn a_generation_is_seen_as_far_as_it_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let object = object(folder.path());
    let version = version("\"1\"", 4);
    let generation = object.generation(&version.generation());
    let (filler, _locks) = join(&generation, &version);
    let (reader, _wants) = join(&generation, &version);
    assert_eq!(reader.record, version);
    filler.file.write_all_at(b"te", 0).unwrap();
    assert_eq!(reader.progress.available(0), 0);
    filler.progress.set_landed(0, 2);
    assert_eq!((reader.progress.available(0), reader.progress.available(1)), (2, 1));
    assert_eq!((reader.progress.available(2), reader.progress.is_whole()), (0, false));
    filler.file.write_all_at(b"xt", 2).unwrap();
    filler.progress.set_landed(0, 4);
    assert!(reader.progress.is_whole() && text(&generation).is_none());
    generation.publish(&filler.file, File::sync_data).unwrap();
    assert_eq!(text(&generation).as_deref(), Some("text"));
}

#[test]
fn whoever_waits_is_woken_by_what_is_announced() {
    let folder = tempfile::tempdir().unwrap();
    let object = object(folder.path());
    let version = version("\"1\"", 4);
    let generation = object.generation(&version.generation());
    let (filler, _locks) = join(&generation, &version);
    let (reader, _wants) = join(&generation, &version);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            while reader.progress.available(0) == 0 {
                let seen = reader.progress.changes();
                if reader.progress.available(0) == 0 {
                    reader.progress.wait(seen, Duration::from_secs(60));
                }
            }
        });
        filler.progress.set_landed(0, 1);
        filler.progress.announce();
        waiting.join().unwrap();
    });
}

#[test]
fn after_a_reboot_only_what_is_surely_on_the_disk_is_believed() {
    let folder = tempfile::tempdir().unwrap();
    let object = object(folder.path());
    let version = version("\"1\"", 3 << 20);
    let generation = object.generation(&version.generation());
    let (filler, locks) = join(&generation, &version);
    filler.progress.set_landed(0, 1 << 20);
    generation.keep(&filler.file, &filler.progress.extents(), File::sync_data).unwrap();
    filler.progress.set_landed(1, 77);
    drop((filler, locks));
    // Another boot's progress is another file's.
    let map = generation_file(&object, &generation, "map");
    let mut bytes = fs::read(&map).unwrap();
    bytes[16] ^= 1;
    fs::write(&map, bytes).unwrap();
    assert!(generation.open_growing().unwrap().is_none());
    let (again, _locks) = join(&generation, &version);
    assert_eq!((again.progress.landed(0), again.progress.landed(1)), (1 << 20, 0));
    // Nor is a damaged note of extents believed.
    fs::remove_file(&map).unwrap();
    fs::write(generation_file(&object, &generation, "extents"), "offload-extents 2\n").unwrap();
    let (again, _locks) = join(&generation, &version);
    assert_eq!(again.progress.extents().total(), 0);
}

#[test]
fn a_new_body_does_not_inherit_extents() {
    let folder = tempfile::tempdir().unwrap();
    let object = object(folder.path());
    let version = version("\"1\"", 3 << 20);
    let generation = object.generation(&version.generation());
    let (filler, locks) = join(&generation, &version);
    filler.progress.set_landed(0, 1 << 20);
    generation.keep(&filler.file, &filler.progress.extents(), File::sync_data).unwrap();
    drop((filler, locks));
    for kind in ["part", "map"] {
        fs::remove_file(generation_file(&object, &generation, kind)).unwrap();
    }
    let (again, _locks) = join(&generation, &version);
    assert_eq!(again.progress.extents().total(), 0);
}

/// Puts a copy in the place of a file: the same bytes, another number.
fn replace_by_copy(path: &Path) {
    let copy = path.with_extension("copy");
    fs::copy(path, &copy).unwrap();
    fs::rename(&copy, path).unwrap();
}

#[test]
fn what_is_said_of_one_body_is_not_believed_of_another() {
    let folder = tempfile::tempdir().unwrap();
    let object = object(folder.path());
    let version = version("\"1\"", 3 << 20);
    let generation = object.generation(&version.generation());
    let (part, map) = (
        generation_file(&object, &generation, "part"),
        generation_file(&object, &generation, "map"),
    );
    // A reader opens the part, and somebody replaces part and map before he opens the map.
    let (filler, locks) = join(&generation, &version);
    filler.progress.set_landed(0, 1 << 20);
    generation.keep(&filler.file, &filler.progress.extents(), File::sync_data).unwrap();
    drop((filler, locks));
    replace_by_copy(&part);
    assert!(generation.open_growing().unwrap().is_none(), "the map of another part");
    // As after a reboot: there is no map, and the extents are those of another part.
    fs::remove_file(&map).unwrap();
    let (again, _locks) = join(&generation, &version);
    assert_eq!(again.progress.extents().total(), 0);
}

#[test]
fn a_map_that_cannot_be_opened_now_is_not_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let object = object(folder.path());
    let version = version("\"1\"", 3 << 20);
    let generation = object.generation(&version.generation());
    let (_filler, _locks) = join(&generation, &version);
    let map = generation_file(&object, &generation, "map");
    let (aside, socket) = (folder.path().join("aside"), folder.path().join("socket"));
    let _socket = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    fs::rename(&map, &aside).unwrap();
    fs::rename(&socket, &map).unwrap();
    assert!(generation.open_growing().is_err());
    assert!(generation.join(&version, &[Part::whole(version.length)]).is_err());
    fs::rename(&aside, &map).unwrap();
    assert!(generation.open_growing().unwrap().is_some());
}

#[test]
fn a_body_in_thirty_thousand_pieces_survives_a_reboot() {
    let folder = tempfile::tempdir().unwrap();
    let object = object(folder.path());
    let version = version("\"1\"", 60_000 << 20);
    let generation = object.generation(&version.generation());
    let (filler, locks) = join(&generation, &version);
    (0..30_000).for_each(|number| filler.progress.set_landed(2 * number, 1 << 20));
    generation.keep(&filler.file, &filler.progress.extents(), File::sync_data).unwrap();
    drop((filler, locks));
    fs::remove_file(generation_file(&object, &generation, "map")).unwrap();
    let (again, _locks) = join(&generation, &version);
    assert_eq!(again.progress.extents().total(), 30_000 << 20);
}

#[test]
fn who_puts_a_growing_body_aside_ends_those_who_fill_it() {
    let folder = tempfile::tempdir().unwrap();
    let object = object(folder.path());
    let version = version("\"1\"", 3 << 20);
    let generation = object.generation(&version.generation());
    let (old, locks) = join(&generation, &version);
    old.progress.set_landed(0, 1 << 20);
    generation.discard("it is damaged").unwrap();
    assert!(old.progress.is_given_up());
    let (new, _locks) = join(&generation, &version);
    // What the old filler leaves behind is nothing of the new body's.
    generation.keep(&old.file, &old.progress.extents(), File::sync_data).unwrap();
    generation.fail(&old.file, &crate::failure::Kind::Down.says("no")).unwrap();
    generation.publish(&old.file, File::sync_data).unwrap();
    drop((old, locks));
    for kind in ["extents", "error", "body"] {
        assert!(!generation_file(&object, &generation, kind).exists(), "{kind}");
    }
    assert!(!new.progress.is_given_up());
    fs::remove_file(generation_file(&object, &generation, "map")).unwrap();
    let (again, _locks) = join(&generation, &version);
    assert_eq!(again.progress.extents().total(), 0);
}

#[test]
fn what_was_given_up_is_begun_anew_beside_it() {
    let folder = tempfile::tempdir().unwrap();
    let object = object(folder.path());
    let version = version("W/\"1\"", 4);
    let generation = object.generation(&version.generation());
    let (old, locks) = join(&generation, &version);
    old.progress.set_landed(0, 2);
    old.progress.give_up();
    drop(locks);
    let (new, _locks) = join(&generation, &version);
    assert_eq!(new.progress.available(0), 0);
    assert!(old.progress.is_given_up() && !new.progress.is_given_up());
}

#[test]
fn what_somebody_reads_or_fills_is_not_removed() {
    let folder = tempfile::tempdir().unwrap();
    let object = object(folder.path());
    let version = version("\"1\"", 4);
    let generation = object.generation(&version.generation());
    let reader = join(&generation, &version);
    assert!(!generation.remove().unwrap());
    drop(reader);
    assert!(generation.remove().unwrap());
    let generation = publish(&object, "\"2\"", "text", at(0));
    let reader = generation.open_whole().unwrap();
    assert!(!generation.remove().unwrap());
    drop(reader);
    assert!(generation.remove().unwrap());
    assert_eq!(fs::read_dir(&object.folder).unwrap().count(), 2, "lock and current");
}

fn generation_file(object: &Object, generation: &Generation, kind: &str) -> PathBuf {
    object.folder.join(format!("{}-{}.{kind}", object.key, generation.name()))
}

#[test]
fn a_new_generation_replaces_the_old_one_whose_readers_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let object = object(folder.path());
    let old = publish(&object, "\"1\"", "old", at(0));
    let mut reader = old.open_whole().unwrap().unwrap().file;
    let new = publish(&object, "\"2\"", "new", at(1));
    assert_eq!(text(&new).as_deref(), Some("new"));
    let mut read = String::new();
    reader.read_to_string(&mut read).unwrap();
    assert_eq!(read, "old");
    drop(reader);
    object.leave(&old);
    assert_eq!(text(&old), None);
    let left = fs::read_dir(&object.folder).unwrap().count();
    assert_eq!(left, 5, "lock, current, and lock, meta, body of the new one");
}

#[test]
fn a_generation_that_comes_late_does_not_replace_a_later_one() {
    let folder = tempfile::tempdir().unwrap();
    let object = object(folder.path());
    let new = publish(&object, "\"2\"", "new", at(1));
    let old = publish(&object, "\"1\"", "old", at(0));
    object.leave(&old);
    assert_eq!((text(&old), text(&new).as_deref()), (None, Some("new")));
    assert_eq!(object.current().unwrap().generation, new.name());
}

#[test]
fn a_check_moves_the_time_forward_and_never_back() {
    let folder = tempfile::tempdir().unwrap();
    let object = object(folder.path());
    let generation = publish(&object, "\"1\"", "text", at(5));
    for (checked, expected) in [(at(9), at(9)), (at(7), at(9))] {
        assert!(object.confirm(generation.name(), checked).unwrap());
        assert_eq!(object.current().unwrap().checked, expected);
    }
}

#[test]
fn a_check_from_before_the_clock_was_set_back_is_older_than_any() {
    let folder = tempfile::tempdir().unwrap();
    let object = object(folder.path());
    for ahead in [600, 100_000] {
        let now = SystemTime::now();
        let old = publish(&object, "\"1\"", "old", now + Duration::from_secs(ahead));
        assert_eq!(object.current().unwrap().generation, old.name());
        let new = publish(&object, "\"2\"", "new", now);
        let current = object.current().unwrap();
        assert_eq!((current.generation.as_str(), current.checked), (new.name(), now), "{ahead}");
        // The same of one version.
        object.confirm(new.name(), now + Duration::from_secs(ahead)).unwrap();
        object.confirm(new.name(), now).unwrap();
        assert_eq!(object.current().unwrap().checked, now, "{ahead}");
    }
}

#[test]
fn a_removed_object_leaves_nothing_that_is_served() {
    let folder = tempfile::tempdir().unwrap();
    let object = object(folder.path());
    let generation = publish(&object, "\"1\"", "text", at(0));
    object.remove().unwrap();
    assert!(object.current().is_none() && text(&generation).is_none());
}

#[test]
fn a_generation_that_is_being_filled_is_not_swept() {
    let folder = tempfile::tempdir().unwrap();
    let object = object(folder.path());
    let version = version("\"1\"", 4);
    let filling = object.generation(&version.generation());
    object.confirm(filling.name(), at(0)).unwrap();
    let _reader = join(&filling, &version);
    publish(&object, "\"2\"", "new", at(1));
    assert!(filling.open_growing().unwrap().is_some());
}

#[test]
fn headers_are_kept_up_to_date_and_the_first_date_stays() {
    let folder = tempfile::tempdir().unwrap();
    let object = object(folder.path());
    let mut found = version("\"1\"", 4);
    let generation = object.generation(&found.generation());
    found.validators.answered = Some(at(0));
    generation.describe(&found).unwrap();
    found.validators.answered = Some(at(9));
    found.headers = vec![("Content-Type", "a/b".into())];
    generation.describe(&found).unwrap();
    let record = generation.record().unwrap().unwrap();
    assert_eq!(record.headers, found.headers);
    assert_eq!(record.validators.answered, Some(at(0)));
}

#[test]
fn a_body_of_the_wrong_size_is_damaged_and_put_aside() {
    let folder = tempfile::tempdir().unwrap();
    let object = object(folder.path());
    let generation = publish(&object, "\"1\"", "text", at(0));
    let body = object.folder.join(format!("{}-{}.body", object.key, generation.name()));
    fs::write(&body, "tex").unwrap();
    let Err(Flaw::Damaged(damage)) = generation.open_whole() else { panic!("it is sound") };
    assert!(damage.contains("3 bytes instead of 4"), "{damage}");
    let version = version("\"1\"", 4);
    let (growing, _locks) = join(&generation, &version);
    assert_eq!(growing.progress.available(0), 0);
    assert!(generation.open_whole().unwrap().is_none());
    assert_eq!(fs::read_dir(&object.quarantine).unwrap().count(), 2);
}

#[test]
fn no_link_is_followed_out_of_the_cache() {
    let folder = tempfile::tempdir().unwrap();
    let object = object(folder.path());
    let generation = publish(&object, "\"1\"", "text", at(0));
    let body = object.folder.join(format!("{}-{}.body", object.key, generation.name()));
    let elsewhere = folder.path().join("elsewhere");
    fs::write(&elsewhere, "evil").unwrap();
    fs::remove_file(&body).unwrap();
    symlink(&elsewhere, &body).unwrap();
    assert!(matches!(generation.open_whole(), Err(Flaw::Damaged(_))));
}

#[test]
fn a_failure_note_is_read_once_per_failure() {
    let folder = tempfile::tempdir().unwrap();
    let object = object(folder.path());
    let version = version("\"1\"", 4);
    let generation = object.generation(&version.generation());
    let (filler, _locks) = join(&generation, &version);
    let failure = crate::failure::Kind::Down.says("no");
    generation.fail(&filler.file, &failure).unwrap();
    let (first, read) = generation.failure().unwrap();
    assert_eq!(read, failure);
    generation.fail(&filler.file, &failure).unwrap();
    assert_ne!(generation.failure().unwrap().0, first);
}

#[test]
fn a_folder_that_others_can_write_is_refused_with_the_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("a/cache");
    let environment = [
        ("OFFLOAD_BASE".into(), "http://base.test".into()),
        ("OFFLOAD_CACHE".into(), cache.clone().into_os_string()),
    ];
    let options = Options::read(environment, &[]).unwrap();
    assert!(Store::open(&options).is_ok());
    assert_eq!(fs::metadata(&cache).unwrap().mode() & 0o777, 0o700);
    fs::set_permissions(&cache, fs::Permissions::from_mode(0o770)).unwrap();
    let Err(Unusable::Wrong(error)) = Store::open(&options) else { panic!("it is used") };
    assert!(error.starts_with("OFFLOAD_CACHE") && error.contains("chmod 0700"), "{error}");
}
