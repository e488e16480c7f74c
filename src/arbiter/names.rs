//! Names of VMs and hosts as parts of a path in an ensemble's tree. A ZooKeeper path cannot hold everything that a name may: what is not
//! a visible ASCII character, `/` and `%` are percent-escaped (as UTF-8 bytes), and so are the names `.` and `..`.

use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};

const ESCAPED: &AsciiSet = &CONTROLS.add(b' ').add(b'/').add(b'%');

/// The part of a path that stands for `name`.
pub fn escape(name: &str) -> String {
    match name {
        "." => "%2E".into(),
        ".." => "%2E%2E".into(),
        _ => utf8_percent_encode(name, ESCAPED).to_string(),
    }
}

/// The name that a part of a path stands for. Of a part that stands for none, whatever can be shown of it.
pub fn unescape(part: &str) -> String {
    percent_decode_str(part).decode_utf8_lossy().into_owned()
}

/// Where everything of a VM is, below `root`.
pub fn vm_path(root: &str, vm: &str) -> String {
    format!("{root}/vms/{}", escape(vm))
}

/// Where the register of a VM is, below `root`.
pub fn register_path(root: &str, vm: &str) -> String {
    format!("{}/generation", vm_path(root, vm))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_that_are_paths_already_stay_as_they_are() {
        for name in ["vm", "web-1.example", "a~b:c", "...", "zookeeper"] {
            assert_eq!(escape(name), name);
        }
        assert_eq!([escape("."), escape(".."), escape("a/b"), escape("50 %")], ["%2E", "%2E%2E", "a%2Fb", "50%20%25"]);
        assert_eq!(escape("ü\u{1f600}"), "%C3%BC%F0%9F%98%80");
    }

    proptest! {
        #[test]
        fn every_name_is_one_part_of_a_path_and_comes_back(name in "\\PC{1,40}|[./% a]{1,5}") {
            let part = escape(&name);
            prop_assert!(part.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/'));
            prop_assert!(part != "." && part != "..");
            prop_assert_eq!(unescape(&part), name);
        }

        #[test]
        fn different_names_are_different_parts(one in "[./%2E a]{1,6}", other in "[./%2E a]{1,6}") {
            prop_assert_eq!(escape(&one) == escape(&other), one == other);
        }
    }
}
