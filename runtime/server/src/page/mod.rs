//! The web page, as it lies beside this file: plain HTML, CSS and ES modules, sent from memory, with nothing from
//! elsewhere and a policy that forbids it.

use axum::Router;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

/// A file of the page.
struct File {
    path: &'static str,
    kind: &'static str,
    text: &'static str,
}

const FILES: &[File] = &[
    File { path: "/", kind: "text/html; charset=utf-8", text: include_str!("index.html") },
    File { path: "/page/style.css", kind: "text/css; charset=utf-8", text: include_str!("style.css") },
    File { path: "/page/icon.svg", kind: "image/svg+xml", text: include_str!("icon.svg") },
    File { path: "/page/app.js", kind: SCRIPT, text: include_str!("app.js") },
    File { path: "/page/api.js", kind: SCRIPT, text: include_str!("api.js") },
    File { path: "/page/dom.js", kind: SCRIPT, text: include_str!("dom.js") },
    File { path: "/page/form.js", kind: SCRIPT, text: include_str!("form.js") },
    File { path: "/page/viewer.js", kind: SCRIPT, text: include_str!("viewer.js") },
];
const SCRIPT: &str = "text/javascript; charset=utf-8";

/// What the page may load: its own files, pictures and films that it asked the server for, and nothing else. Source: W3C
/// Content Security Policy Level 3.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; \
    media-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// `/` and what it loads.
pub fn router() -> Router {
    FILES.iter().fold(Router::new(), |router, file| {
        let tag = format!("\"{}\"", &blake3::hash(file.text.as_bytes()).to_hex()[..32]);
        router.route(file.path, get(move |headers: HeaderMap| std::future::ready(send(file, &tag, &headers))))
    })
}

fn send(file: &File, tag: &str, headers: &HeaderMap) -> Response {
    let known = headers.get(header::IF_NONE_MATCH).is_some_and(|given| given.as_bytes() == tag.as_bytes());
    let fixed = [
        (header::CONTENT_TYPE, file.kind),
        (header::CACHE_CONTROL, "no-cache"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    let tag = [(header::ETAG, tag)];
    if known { (StatusCode::NOT_MODIFIED, fixed, tag).into_response() } else { (fixed, tag, file.text).into_response() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(path: &str) -> &'static str {
        FILES.iter().find(|file| file.path == path).unwrap_or_else(|| panic!("no {path}")).text
    }

    #[test]
    fn everything_the_page_loads_is_a_file_of_it() {
        let mut found = 0;
        for file in FILES {
            for (mark, base) in [("href=\"", "/"), ("src=\"", "/"), ("from \"./", "/page/")] {
                for rest in file.text.split(mark).skip(1) {
                    let name = rest.split('"').next().unwrap();
                    if !name.is_empty() && !name.starts_with('#') {
                        text(&format!("{base}{name}"));
                        found += 1;
                    }
                }
            }
        }
        assert!(found >= 8, "only {found} references found");
    }

    #[test]
    fn nothing_comes_from_elsewhere_and_nothing_runs_that_the_policy_forbids() {
        for file in FILES {
            let text = file.text.replace("http://www.w3.org/2000/svg", "");
            for word in
                ["http://", "https://", "//cdn", "@import", "innerHTML", "eval(", " onclick=", " style=", "<style"]
            {
                assert!(!text.contains(word), "{}: {word}", file.path);
            }
        }
        assert!(!text("/").contains("<script>"));
    }

    #[test]
    fn every_element_that_a_script_names_is_in_the_page() {
        let page = text("/");
        for file in FILES.iter().filter(|file| file.kind == SCRIPT) {
            for rest in file.text.split("$(\"").skip(1) {
                let id = rest.split('"').next().unwrap();
                assert!(page.contains(&format!("id=\"{id}\"")), "{}: {id}", file.path);
            }
        }
    }

    #[test]
    fn every_field_has_a_label() {
        let page = text("/");
        for mark in ["<input", "<select", "<textarea"] {
            for field in page.split(mark).skip(1) {
                let id = field.split("id=\"").nth(1).unwrap().split('"').next().unwrap();
                assert!(page.contains(&format!("<label for=\"{id}\"")), "{id}");
            }
        }
    }

    #[test]
    fn a_browser_that_has_a_file_is_not_sent_it_again() {
        let file = &FILES[0];
        let first = send(file, "\"x\"", &HeaderMap::new());
        assert_eq!(first.status(), StatusCode::OK);
        assert_eq!(first.headers()[header::ETAG], "\"x\"");
        assert!(first.headers()[header::CONTENT_SECURITY_POLICY].to_str().unwrap().starts_with("default-src 'none';"));
        let mut headers = HeaderMap::new();
        headers.insert(header::IF_NONE_MATCH, "\"x\"".parse().unwrap());
        assert_eq!(send(file, "\"x\"", &headers).status(), StatusCode::NOT_MODIFIED);
    }
}
