use super::*;
use crate::directive::rows;
use crate::setting::Context;

fn layers(statements: &[&str]) -> (HostLayer, Layer) {
    let (mut host, mut section) = (HostLayer::default(), Layer::default());
    for statement in statements {
        let (at, statement) = statement.split_once(": ").unwrap_or(("", statement));
        let words: Vec<&str> = statement.split(' ').collect();
        let context = Context {
            compile: &|text| Ok(Condition::new(text.to_owned())),
            section: &|| Some(format!("<Location {at}>")),
            server: &|| "www.example.org:80".to_owned(),
            methods: if at == "get" { 1 } else { u64::MAX },
        };
        let row = rows().find(|row| row.name.to_str() == Ok(words[0])).unwrap();
        row.say(&mut section, &mut host, &words[1..], &context).unwrap();
    }
    (host, section)
}

fn asked(statements: &[&str], facts: &Facts<'_>) -> Vec<(Kind, u32)> {
    let (host, section) = layers(statements);
    let mut directory = Directory::default();
    let scopes = directory.declare_host(&host, "www.example.org:80");
    let mut asked = Vec::new();
    let mut demands = Demands::new(&scopes, Some(&section), *facts);
    while let Some(demand) = demands.next() {
        asked.push((demand.kind(), demand.most));
        demands.last_one_holds();
    }
    asked
}

const FACTS: Facts<'static> = Facts { has_user: false, is_seated: false, path: b"/a/b", method: 0 };

#[test]
fn a_server_without_limits_asks_nothing() {
    assert!(asked(&[], &FACTS).is_empty());
    assert!(asked(&["MaxConnectionsPerIP 0", "LoadLimitServer 0"], &FACTS).is_empty());
}

#[test]
fn limits_of_users_concern_only_those_who_said_who_they_are() {
    let statements = ["MaxConnectionsPerUser 3", "GlobalMaxConnectionsPerUser 10"];
    assert!(asked(&statements, &FACTS).is_empty());
    let facts = Facts { has_user: true, ..FACTS };
    assert_eq!(
        asked(&statements, &facts),
        [(Kind::MaxConnectionsPerUser, 3), (Kind::GlobalMaxConnectionsPerUser, 10)]
    );
}

#[test]
fn an_inner_limit_whose_condition_fails_leaves_the_outer_one() {
    let (host, section) =
        layers(&["outer: MaxConcurrentReqs 5", "inner: MaxConcurrentReqs 2 if=never"]);
    let mut directory = Directory::default();
    let scopes = directory.declare_host(&host, "www");
    let demands = Demands::new(&scopes, Some(&section), FACTS);
    // Nobody says that a condition holds.
    let told: Vec<u32> = demands.map(|demand| demand.most).collect();
    assert_eq!(told, [2, 5]);
}

#[test]
fn of_a_load_limit_1_only_the_first_path_is_ever_refused() {
    let statements = ["LoadLimit1 5 /page /images"];
    let at = |path| asked(&statements, &Facts { path, ..FACTS });
    assert_eq!(at(b"/page/x"), [(Kind::LoadLimit1, 5)]);
    assert_eq!(at(b"/images/x"), [(Kind::LoadLimit1, u32::MAX)]);
    assert!(at(b"/other").is_empty());
}

#[test]
fn the_innermost_section_that_covers_the_method_counts() {
    let statements = ["outer: MaxConcurrentReqs 5", "get: MaxConcurrentReqs 2"];
    assert_eq!(asked(&statements, &FACTS), [(Kind::MaxConcurrentReqs, 2)]);
    assert_eq!(asked(&statements, &Facts { method: 2, ..FACTS }), [(Kind::MaxConcurrentReqs, 5)]);
    let statements = ["outer: MaxConcurrentReqs 5", "inner: MaxConcurrentReqs 0"];
    assert!(asked(&statements, &FACTS).is_empty(), "0 lifts the limit of the outer section");
}

#[test]
fn every_declared_scope_has_a_row_of_its_own() {
    let mut directory = Directory::default();
    for number in 0..900 {
        let place = number.to_string();
        directory.declare(
            Kind::MaxConcurrentReqs,
            ScopeName::of(Kind::MaxConcurrentReqs, &place),
            &place,
            1,
        );
    }
    let mut rows: Vec<u16> = directory.entries().iter().map(|entry| entry.scope.0).collect();
    rows.sort_unstable();
    rows.dedup();
    assert_eq!(rows.len(), 900);
    assert!(!rows.contains(&0), "row 0 is for scopes that nobody declared");
    let unlisted = ScopeName::of(Kind::LoadLimit, "x");
    assert_eq!(directory.place(unlisted).scope, Scope(0));
}

#[test]
fn a_page_names_the_limit_and_cannot_break_html() {
    assert_eq!(page(Kind::LoadLimit, Some("/a<b>")), "Too many users are connected to /a?b?");
    assert_eq!(page(Kind::LoadLimitServer, None), "Too many users are connected to this server");
}
