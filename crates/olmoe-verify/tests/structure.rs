//! The structure of the project holds by itself: crates depend downwards only, and the files of a crate on each other without
//! circles. The parts of a folder may name what its own file declares (`a/b.rs` what is in `a.rs`), though that file names
//! them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Crates from the bottom to the top; those of a row do not depend on each other.
const ROWS: [&[&str]; 8] = [
    &["olmoe-tensor"],
    &["olmoe-model", "olmoe-data"],
    &["olmoe-checkpoint", "olmoe-engine"],
    &["olmoe-analysis"],
    &["olmoe-eval"],
    &["olmoe-train"],
    &["olmoe-verify"],
    &["olmoe"],
];

fn crates() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The names of the table `[dependencies]`.
fn dependencies(manifest: &str) -> impl Iterator<Item = &str> {
    let table = manifest.split("\n[").find_map(|table| table.strip_prefix("dependencies]\n")).unwrap_or("");
    table.lines().filter_map(|line| line.split(['.', ' ', '=']).next())
}

#[test]
fn crates_depend_downwards() {
    let row = |name: &str| ROWS.iter().position(|row| row.contains(&name));
    let mut found = 0;
    for entry in fs::read_dir(crates()).unwrap() {
        let folder = entry.unwrap().path();
        let name = folder.file_name().unwrap().to_str().unwrap().to_owned();
        let own = row(&name).unwrap_or_else(|| panic!("{name}: in no row of this test; where does it belong?"));
        let manifest = fs::read_to_string(folder.join("Cargo.toml")).unwrap();
        for other in dependencies(&manifest).filter(|other| other.starts_with("olmoe")) {
            let other_row = row(other).unwrap_or_else(|| panic!("{other}: in no row of this test"));
            assert!(other_row < own, "{name} depends on {other}, which is not below it");
            found += 1;
        }
    }
    assert!(found > 10, "{found} dependencies: the manifests were not understood");
}

/// A module, as the names that lead to it from the root of its crate.
type Module = Vec<String>;

/// The modules of a crate that have files, with their texts, without comments and tests.
fn modules(source: &Path) -> BTreeMap<Module, String> {
    let mut all = BTreeMap::new();
    let mut folders = vec![(source.to_owned(), Module::new())];
    while let Some((folder, module)) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let stem = path.file_stem().unwrap().to_str().unwrap().to_owned();
            let mut own = module.clone();
            if path.is_dir() {
                own.push(stem);
                folders.push((path, own));
                continue;
            }
            if path.extension().is_none_or(|extension| extension != "rs") || stem == "tests" {
                continue;
            }
            if !["lib", "main", "mod"].contains(&stem.as_str()) {
                own.push(stem);
            }
            let text = fs::read_to_string(&path).unwrap();
            let text =
                text.split("#[cfg(test)]\nmod tests {").next().unwrap_or("").replace("#[cfg(test)]\nmod tests;", "");
            let code = text.lines().map(|line| line.split("//").next().unwrap_or("")).collect::<Vec<_>>().join("\n");
            all.insert(own, code);
        }
    }
    all
}

/// The paths that a tree of `use` names, such as `a::{b, c::{d, e}}`, with the name that each gets.
fn leaves(tree: &str, before: &[String], out: &mut Vec<(Vec<String>, String)>) {
    let tree = tree.trim();
    let Some((head, inner)) = tree.split_once('{') else {
        let (path, name) = tree.split_once(" as ").unwrap_or((tree, ""));
        let mut all = before.to_vec();
        all.extend(path.split("::").map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned));
        if all.last().is_some_and(|last| last == "self") {
            all.pop();
        }
        if let Some(last) = all.last().cloned() {
            out.push((all, if name.is_empty() { last } else { name.trim().to_owned() }));
        }
        return;
    };
    let mut all = before.to_vec();
    all.extend(head.split("::").map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned));
    let (mut depth, mut start) = (0, 0);
    let inner = &inner[..inner.rfind('}').unwrap_or(inner.len())];
    for (at, letter) in inner.char_indices().chain([(inner.len(), ',')]) {
        match letter {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                leaves(&inner[start..at], &all, out);
                start = at + 1;
            }
            _ => {}
        }
    }
}

/// The paths of a text that may lead to another file: of its `use`s, with their names and whether they are public, and those
/// that begin with `crate` or `super` elsewhere.
fn paths(code: &str) -> Vec<(Vec<String>, String, bool)> {
    let mut all = Vec::new();
    for statement in code.split(';') {
        let at = statement.rfind("use ").filter(|at| statement[..*at].ends_with(['\n', ' ', ')', ']']) || *at == 0);
        if let Some(at) = at {
            let line = statement[..at].rsplit('\n').next().unwrap_or("");
            let mut found = Vec::new();
            leaves(&statement[at + 4..], &[], &mut found);
            all.extend(found.into_iter().map(|(path, name)| (path, name, line.contains("pub"))));
        }
    }
    for start in ["crate::", "super::"] {
        for (at, _) in code.match_indices(start) {
            if code[..at]
                .ends_with(|letter: char| letter.is_alphanumeric() || letter == '_' || letter == ':' || letter == '$')
            {
                continue;
            }
            let end = code[at..].find(|letter: char| !letter.is_alphanumeric() && letter != '_' && letter != ':');
            let path = &code[at..at + end.unwrap_or(code.len() - at)];
            let path: Vec<String> = path.split("::").filter(|part| !part.is_empty()).map(str::to_owned).collect();
            all.push((path, String::new(), false));
        }
    }
    all
}

/// The files that each file of a crate names.
struct Names {
    modules: BTreeMap<Module, String>,
    /// Of each module, what it hands on under which name.
    handed_on: BTreeMap<Module, BTreeMap<String, Vec<String>>>,
}

impl Names {
    fn new(source: &Path) -> Names {
        let modules = modules(source);
        let handed_on = modules
            .iter()
            .map(|(module, code)| {
                let public = paths(code).into_iter().filter(|(.., public)| *public);
                (module.clone(), public.map(|(path, name, _)| (name, path)).collect())
            })
            .collect();
        Names { modules, handed_on }
    }

    /// The module in whose file a path ends that is written in `module`.
    fn resolve(&self, module: &Module, path: &[String], depth: usize) -> Option<Module> {
        let mut at = module.clone();
        let mut rest = path;
        match path.first()?.as_str() {
            "crate" => (at, rest) = (Module::new(), &path[1..]),
            "self" => rest = &path[1..],
            "super" => {
                while rest.first().is_some_and(|part| part == "super") {
                    at.pop()?;
                    rest = &rest[1..];
                }
            }
            first => {
                let mut child = at.clone();
                child.push(first.to_owned());
                if !self.modules.contains_key(&child) {
                    return None;
                }
            }
        }
        for (i, part) in rest.iter().enumerate() {
            let mut child = at.clone();
            child.push(part.clone());
            if self.modules.contains_key(&child) {
                at = child;
                continue;
            }
            if depth < 8
                && let Some(path) = self.handed_on.get(&at).and_then(|names| names.get(part))
            {
                let path: Vec<String> = path.iter().chain(&rest[i + 1..]).cloned().collect();
                return self.resolve(&at, &path, depth + 1).or(Some(at));
            }
            break;
        }
        Some(at)
    }

    /// The edges between files, but for those from a part of a folder up to the folder's own file.
    fn edges(&self) -> BTreeMap<Module, BTreeSet<Module>> {
        let of = |module: &Module, code: &str| {
            let ends = paths(code).into_iter().filter_map(|(path, ..)| self.resolve(module, &path, 0));
            ends.filter(|end| !module.starts_with(end)).collect()
        };
        self.modules.iter().map(|(module, code)| (module.clone(), of(module, code))).collect()
    }
}

/// All that can be reached.
fn reach(edges: &BTreeMap<Module, BTreeSet<Module>>, from: &Module) -> BTreeSet<Module> {
    let mut seen = BTreeSet::new();
    let mut open: Vec<&Module> = edges.get(from).into_iter().flatten().collect();
    while let Some(next) = open.pop() {
        if seen.insert(next.clone()) {
            open.extend(edges.get(next).into_iter().flatten());
        }
    }
    seen
}

/// Groups of files that reach each other.
fn circles(source: &Path) -> Vec<String> {
    let edges = Names::new(source).edges();
    let reached: BTreeMap<_, _> = edges.keys().map(|module| (module, reach(&edges, module))).collect();
    let mut groups = BTreeSet::new();
    for (module, ends) in &reached {
        if ends.contains(*module) {
            let group: Vec<String> = ends
                .iter()
                .filter(|end| reached.get(end).is_some_and(|back| back.contains(*module)))
                .map(|end| end.join("/"))
                .collect();
            groups.insert(group.join(", "));
        }
    }
    groups.into_iter().collect()
}

#[test]
fn files_have_no_circles() {
    let mut all = Vec::new();
    for row in ROWS {
        for name in row {
            let source = crates().join(name).join("src");
            all.extend(circles(&source).into_iter().map(|circle| format!("{name}: {circle}")));
        }
    }
    assert!(all.is_empty(), "files that need each other:\n{}", all.join("\n"));
}

#[test]
fn a_circle_is_found() {
    let folder = std::env::temp_dir().join(format!("structure-{}", std::process::id()));
    let write = |name: &str, text: &str| {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    write("lib.rs", "mod a;\nmod b;\nmod c;\n");
    write("a.rs", "use crate::b::{Inner, Other};\nstruct A;\n");
    write("b.rs", "mod deep;\npub use deep::{Inner};\nstruct Other;\n");
    write("b/deep.rs", "// use crate::a::A;\nfn f() { super::super::c::g() }\npub struct Inner;\n");
    write("c.rs", "pub fn g() { crate::a::h::<u8>() }\n");
    let found = circles(&folder);
    write("c.rs", "pub fn g() {}\n#[cfg(test)]\nmod tests { use crate::a::A; }\n");
    let none = circles(&folder);
    fs::remove_dir_all(&folder).unwrap();
    assert_eq!(found, ["a, b, b/deep, c"]);
    assert!(none.is_empty(), "{none:?}");
}

#[test]
fn tests_that_the_documents_name_exist() {
    let table = fs::read_to_string(crates().join("../docs/reported-faults.md")).unwrap();
    let rows = table.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| reported"));
    let named: BTreeSet<&str> =
        rows.filter_map(|row| row.rsplit('|').nth(1)).flat_map(|tests| tests.split('`').skip(1).step_by(2)).collect();
    assert!(named.len() > 30, "{named:?}");
    let mut missing = named;
    let mut folders = vec![crates()];
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                missing.retain(|name| !text.contains(&format!("fn {name}()")));
            }
        }
    }
    assert_eq!(missing, BTreeSet::new(), "named in docs/reported-faults.md, and no test");
}
