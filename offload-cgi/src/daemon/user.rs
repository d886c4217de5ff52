//! Whom to become instead of root. The files passwd(5) and group(5) are read here: the program is linked
//! statically, and libc would load shared libraries to ask who is who.

use std::fs;

use nix::unistd::{Gid, Uid, setgid, setgroups, setuid};

/// A user of this host.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct User {
    pub(super) uid: Uid,
    pub(super) gid: Gid,
    /// All groups, with the first one.
    groups: Vec<Gid>,
}

impl User {
    /// The user of this name.
    ///
    /// # Errors
    /// A sentence, when there is none.
    pub(super) fn find(name: &str) -> Result<Self, String> {
        let read = |path: &str| {
            fs::read(path)
                .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
                .map_err(|error| format!("'{path}' cannot be read: {error}"))
        };
        let found = Self::of(name, &read("/etc/passwd")?, &read("/etc/group")?);
        found.ok_or_else(|| format!("there is no user '{name}' in /etc/passwd"))
    }

    fn of(name: &str, passwd: &str, group: &str) -> Option<Self> {
        let fields = |line: &str| line.split(':').map(str::to_owned).collect::<Vec<_>>();
        let user = passwd.lines().map(fields).find(|fields| fields[0] == name)?;
        let number = |fields: &[String], at: usize| fields.get(at)?.parse::<u32>().ok();
        let gid = Gid::from_raw(number(&user, 3)?);
        let mut groups = vec![gid];
        for fields in group.lines().map(fields) {
            let members = fields.get(3).map_or("", String::as_str);
            if members.split(',').any(|member| member == name)
                && let Some(gid) = number(&fields, 2).map(Gid::from_raw)
                && !groups.contains(&gid)
            {
                groups.push(gid);
            }
        }
        Some(Self { uid: Uid::from_raw(number(&user, 2)?), gid, groups })
    }

    /// Becomes this user, for good.
    ///
    /// # Errors
    /// When this process may not do that.
    pub(super) fn become_him(&self) -> nix::Result<()> {
        setgroups(&self.groups)?;
        setgid(self.gid)?;
        setuid(self.uid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_has_the_groups_that_name_it() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nwww:x:33:44:www:/var/www:/bin/false\nodd:x::\n+::::::\n";
        let group = "root:x:0:\nwww:x:44:\nmedia:x:50:a,www\nother:x:51:wwwx\nsame:x:44:www\n";
        let user = User::of("www", passwd, group).unwrap();
        assert_eq!((user.uid, user.gid), (Uid::from_raw(33), Gid::from_raw(44)));
        assert_eq!(user.groups, [Gid::from_raw(44), Gid::from_raw(50)]);
        assert_eq!(User::of("odd", passwd, group), None);
        assert_eq!(User::of("ww", passwd, group), None);
        assert!(User::find("no such user").unwrap_err().contains("'no such user' in /etc/passwd"));
    }
}
