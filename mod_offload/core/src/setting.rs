//! How the words after a directive become a value, and how an inner section overrides an outer one.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

/// A value that is written as one word.
pub trait Word: Sized {
    /// Reads the word.
    ///
    /// # Errors
    /// A sentence that names the word and what would have been accepted.
    fn read(word: &str) -> Result<Self, String>;
}

/// `On` or `Off`, in any letter case.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Switch {
    /// It holds.
    On,
    /// It does not.
    Off,
}

impl Switch {
    /// Whether it is on.
    pub fn is_on(self) -> bool {
        self == Self::On
    }
}

impl Word for Switch {
    fn read(word: &str) -> Result<Self, String> {
        match word {
            word if word.eq_ignore_ascii_case("on") => Ok(Self::On),
            word if word.eq_ignore_ascii_case("off") => Ok(Self::Off),
            _ => Err(format!("'{word}' is neither; use On or Off")),
        }
    }
}

impl fmt::Display for Switch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_on() { "On" } else { "Off" })
    }
}

impl Word for crate::units::Bytes {
    fn read(word: &str) -> Result<Self, String> {
        Self::parse(word)
    }
}

/// An `"if=EXPR"` that the server has compiled. Only the server can evaluate it; it is carried here.
#[derive(Clone)]
pub struct Condition(Arc<dyn Any + Send + Sync>);

impl Condition {
    /// Wraps what the server's compiler made.
    pub fn new(compiled: impl Any + Send + Sync) -> Self {
        Self(Arc::new(compiled))
    }

    /// What `new` was given, if it was a `T`.
    pub fn compiled<T: 'static>(&self) -> Option<&T> {
        self.0.downcast_ref()
    }
}

impl fmt::Debug for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Condition")
    }
}

/// Where a statement stands, and what the server does for it.
pub struct Context<'a> {
    /// The server's compiler of expressions: text to [`Condition`], or a sentence.
    pub compile: &'a dyn Fn(&str) -> Result<Condition, String>,
    /// The section, with those around it, by a name that is the same after a restart; `None` outside.
    pub section: &'a dyn Fn() -> Option<String>,
    /// The virtual host, by a name that is the same after a restart.
    pub server: &'a dyn Fn() -> String,
    /// The methods of the `<Limit>` around it, a bit for each of httpd's numbers; else all.
    pub methods: u64,
}

/// One directive's part of what a section says.
pub trait Setting: Clone + Default {
    /// What holds when no section says anything.
    type Default: fmt::Display;
    /// What a decision reads.
    type Held<'a>
    where
        Self: 'a;

    /// Takes one statement of the directive.
    ///
    /// # Errors
    /// A sentence for the administrator, without the directive's name.
    fn say(&mut self, words: &[&str], context: &Context<'_>) -> Result<(), String>;

    /// What holds in an inner section of an outer one.
    fn merged(outer: &Self, inner: &Self) -> Self;

    /// What holds, all sections heard.
    fn held(&self, default: Self::Default) -> Self::Held<'_>;
}

/// A directive of one word; the innermost section that says something is right.
#[derive(Clone, Copy, Debug)]
pub struct Single<T>(Option<T>);

impl<T> Default for Single<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T: Copy + fmt::Display + Word + 'static> Setting for Single<T> {
    type Default = T;
    type Held<'a> = T;

    fn say(&mut self, words: &[&str], _context: &Context<'_>) -> Result<(), String> {
        let [word] = words else { return Err("takes exactly one argument".to_owned()) };
        self.0 = Some(T::read(word)?);
        Ok(())
    }

    fn merged(outer: &Self, inner: &Self) -> Self {
        Self(inner.0.or(outer.0))
    }

    fn held(&self, default: T) -> T {
        self.0.unwrap_or(default)
    }
}

/// A directive whose last statement counts, and that takes more than a word.
#[derive(Clone, Debug)]
pub struct Latest<T>(Option<Arc<T>>);

impl<T> Default for Latest<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T: Entry + 'static> Setting for Latest<T> {
    type Default = Nothing;
    type Held<'a> = Option<&'a T>;

    fn say(&mut self, words: &[&str], context: &Context<'_>) -> Result<(), String> {
        self.0 = T::read_all(words, context)?.pop().map(Arc::new);
        Ok(())
    }

    fn merged(outer: &Self, inner: &Self) -> Self {
        Self(inner.0.as_ref().or(outer.0.as_ref()).cloned())
    }

    fn held(&self, _default: Nothing) -> Option<&T> {
        self.0.as_deref()
    }
}

/// What stands in a list before anything is put in: nothing.
#[derive(Clone, Copy, Debug)]
pub struct Nothing;

impl fmt::Display for Nothing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("none")
    }
}

/// An entry of a list: how many of them one statement makes.
pub trait Entry: Clone {
    /// Reads all the words of one statement; there is at least one.
    ///
    /// # Errors
    /// A sentence that names the word and what would have been accepted.
    fn read_all(words: &[&str], context: &Context<'_>) -> Result<Vec<Self>, String>;

    /// Whether a later statement of `other` takes the place of this one.
    fn same_subject(&self, _other: &Self) -> bool {
        false
    }
}

/// Each word of the statement is an entry.
impl<T: Clone + Word> Entry for T {
    fn read_all(words: &[&str], _context: &Context<'_>) -> Result<Vec<Self>, String> {
        words.iter().map(|word| Self::read(word)).collect()
    }
}

/// A directive that may be repeated; an inner section adds to the outer ones, unless it begins with
/// the word `none`, which forgets them.
#[derive(Clone, Debug)]
pub struct Listed<T> {
    forgets: bool,
    entries: Arc<Vec<T>>,
}

impl<T> Default for Listed<T> {
    fn default() -> Self {
        Self { forgets: false, entries: Arc::default() }
    }
}

impl<T: Entry> Listed<T> {
    fn push(entries: &mut Vec<T>, entry: T) {
        match entries.iter_mut().find(|known| known.same_subject(&entry)) {
            Some(known) => *known = entry,
            None => entries.push(entry),
        }
    }
}

impl<T: Entry + 'static> Setting for Listed<T> {
    type Default = Nothing;
    type Held<'a> = &'a [T];

    fn say(&mut self, words: &[&str], context: &Context<'_>) -> Result<(), String> {
        match words {
            [] => return Err("takes at least one argument".to_owned()),
            [word] if word.eq_ignore_ascii_case("none") => {
                *self = Self { forgets: true, entries: Arc::default() };
            }
            _ => {
                let said = T::read_all(words, context)?;
                let entries = Arc::make_mut(&mut self.entries);
                said.into_iter().for_each(|entry| Self::push(entries, entry));
            }
        }
        Ok(())
    }

    fn merged(outer: &Self, inner: &Self) -> Self {
        if inner.forgets || outer.entries.is_empty() {
            return inner.clone();
        }
        let mut merged = outer.clone();
        if !inner.entries.is_empty() {
            let entries = Arc::make_mut(&mut merged.entries);
            inner.entries.iter().cloned().for_each(|entry| Self::push(entries, entry));
        }
        merged
    }

    fn held(&self, _default: Nothing) -> &[T] {
        &self.entries
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::{Condition, Context};

    /// A statement at server level; a condition is its text.
    pub(crate) fn context() -> Context<'static> {
        Context {
            compile: &|text| Ok(Condition::new(text.to_owned())),
            section: &|| None,
            server: &|| "www.example.org:80".to_owned(),
            methods: u64::MAX,
        }
    }
}
