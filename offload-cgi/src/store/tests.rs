//! Keys, publishing, and what becomes of older generations.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::time::Duration;

use super::*;
use crate::http::{EntityTag, Validators};
use crate::representation::Representation;

fn store(folder: &Path) -> Store {
    Store { root: folder.to_owned(), keep_free: Share::Percent(0) }
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
        headers: Vec::new(),
    }
}

/// Fills a generation as the filler does.
fn publish(object: &Object, etag: &str, text: &str, checked: SystemTime) -> Generation {
    let version = version(etag, text.len());
    let generation = object.generation(&version.generation());
    let _lock = generation.try_lock().unwrap().unwrap();
    let _bell = generation.begin().unwrap();
    let mut part = generation.create(&version).unwrap();
    part.write_all(text.as_bytes()).unwrap();
    generation.publish(&part, checked).unwrap();
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
fn a_generation_is_seen_when_it_is_whole_and_not_before() {
    let folder = tempfile::tempdir().unwrap();
    let object = object(folder.path());
    let version = version("\"1\"", 4);
    let generation = object.generation(&version.generation());
    let lock = generation.try_lock().unwrap().unwrap();
    let mut part = generation.create(&version).unwrap();
    part.write_all(b"text").unwrap();
    assert_eq!(text(&generation), None);
    assert!(object.current().is_none());
    assert_eq!(generation.open_growing().unwrap().record, version);
    generation.publish(&part, at(0)).unwrap();
    drop(lock);
    assert_eq!(text(&generation).as_deref(), Some("text"));
    let current = object.current().unwrap();
    assert_eq!((current.generation.as_str(), current.checked), (generation.name(), at(0)));
}

#[test]
fn a_lock_has_one_holder_and_dies_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let generation = object(folder.path()).generation(&version("\"1\"", 4).generation());
    let lock = generation.try_lock().unwrap();
    assert!(lock.is_some() && generation.try_lock().unwrap().is_none());
    drop(lock);
    assert!(generation.try_lock().unwrap().is_some());
}

#[test]
fn a_new_generation_replaces_the_old_one_whose_readers_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let object = object(folder.path());
    let old = publish(&object, "\"1\"", "old", at(0));
    let mut reader = old.open_whole().unwrap().unwrap().file;
    let new = publish(&object, "\"2\"", "new", at(1));
    assert_eq!((text(&old), text(&new).as_deref()), (None, Some("new")));
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(text, "old");
    let left = fs::read_dir(&object.folder).unwrap().count();
    assert_eq!(left, 5, "lock, current, and lock, meta, body of the new one");
}

#[test]
fn a_generation_that_comes_late_does_not_replace_a_later_one() {
    let folder = tempfile::tempdir().unwrap();
    let object = object(folder.path());
    let new = publish(&object, "\"2\"", "new", at(1));
    let old = publish(&object, "\"1\"", "old", at(0));
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
    let _lock = filling.try_lock().unwrap().unwrap();
    let _part = filling.create(&version).unwrap();
    publish(&object, "\"2\"", "new", at(0));
    assert!(filling.open_growing().is_some());
}

#[test]
fn a_body_of_the_wrong_size_is_damaged_and_put_aside() {
    let folder = tempfile::tempdir().unwrap();
    let object = object(folder.path());
    let generation = publish(&object, "\"1\"", "text", at(0));
    let body = object.folder.join(format!("{}-{}.body", object.key, generation.name()));
    fs::write(&body, "tex").unwrap();
    let damage = generation.open_whole().unwrap_err();
    assert!(damage.contains("3 bytes instead of 4"), "{damage}");
    generation.put_aside(&damage);
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
    assert_eq!(text(&generation), None);
}

#[test]
fn a_failure_note_is_read_once_per_failure() {
    let folder = tempfile::tempdir().unwrap();
    let generation = object(folder.path()).generation(&version("\"1\"", 4).generation());
    let failure = crate::failure::Kind::Down.says("no");
    generation.fail(&failure).unwrap();
    let (first, read) = generation.failure().unwrap();
    assert_eq!(read, failure);
    generation.fail(&failure).unwrap();
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
    let error = Store::open(&options).err().unwrap();
    assert!(error.starts_with("OFFLOAD_CACHE") && error.contains("chmod 0700"), "{error}");
}
