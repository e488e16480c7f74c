//! Paths of nodes: what can be one, and how they hang together.

/// Whether this can be the path of a node: absolute, no empty, `.` or `..` component, no slash at its end, and none of the
/// characters that ZooKeeper refuses (control characters, surrogates and thus everything beyond the basic plane, private use,
/// specials).
pub fn is_valid(path: &str) -> bool {
    let Some(rest) = path.strip_prefix('/') else { return false };
    rest.is_empty() || rest.split('/').all(is_component)
}

fn is_component(name: &str) -> bool {
    !matches!(name, "" | "." | "..") && name.chars().all(is_allowed)
}

fn is_allowed(character: char) -> bool {
    !matches!(character,
        '\0'..='\u{1f}' | '\u{7f}'..='\u{9f}' | '\u{e000}'..='\u{f8ff}' | '\u{fff0}'..='\u{ffff}' | '\u{10000}'..)
}

/// Whether the path is of the ensemble's own nodes, which are neither created nor deleted.
pub fn is_special(path: &str) -> bool {
    matches!(path, "/" | "/zookeeper" | "/zookeeper/quota" | "/zookeeper/config")
}

/// The path of the parent, `/` for the nodes right below the root, and the name. `None` where there is no slash.
pub fn split(path: &str) -> Option<(&str, &str)> {
    let (parent, name) = path.rsplit_once('/')?;
    Some((if parent.is_empty() { "/" } else { parent }, name))
}

/// The path of the parent of a node that exists; the root has none.
pub fn parent(path: &str) -> Option<&str> {
    if path == "/" { None } else { split(path).map(|(parent, _)| parent) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn valid_paths_and_others() {
        for path in ["/", "/a", "/a/b c", "/a/..b", "/é/日本"] {
            assert!(is_valid(path), "{path}");
        }
        for path in
            ["", "a", "/a/", "//", "/a//b", "/.", "/a/..", "/a/./b", "/a\0", "/a\n", "/a\u{7f}", "/\u{f000}", "/😀"]
        {
            assert!(!is_valid(path), "{path:?}");
        }
    }

    #[test]
    fn paths_come_apart_at_the_last_slash() {
        assert_eq!(split("/a"), Some(("/", "a")));
        assert_eq!(split("/a/b"), Some(("/a", "b")));
        assert_eq!(split("/a/"), Some(("/a", "")));
        assert_eq!(split("a"), None);
        assert_eq!((parent("/"), parent("/a"), parent("/a/b")), (None, Some("/"), Some("/a")));
    }
}
