package image

import (
	"regexp"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/volant-edge/volant"
)

// Ref is a reference to an image in a registry, taken apart.
type Ref struct {
	Registry   string // host and port; docker.io where the reference names none
	Repository string
	Tag        string        // "latest" where it names neither tag nor digest
	Digest     volant.Digest // empty where it names none
}

// hub is what go-containerregistry calls Docker's registry.
const hub = name.DefaultRegistry

// String is the reference in full.
func (r Ref) String() string {
	s := r.Registry + "/" + r.Repository
	if r.Tag != "" {
		s += ":" + r.Tag
	}
	if r.Digest != "" {
		s += "@" + string(r.Digest)
	}
	return s
}

// reference is what to ask the registry for.
func (r Ref) reference() string {
	if r.Digest != "" {
		return string(r.Digest)
	}
	return r.Tag
}

// ParseRef reads a reference as Docker's tools write it: nginx, ghcr.io/acme/web:1, web@sha256:….
// "docker://" in front of it is allowed.
func ParseRef(s string) (Ref, error) {
	text := strings.TrimPrefix(s, "docker://")
	bad := func(why string) (Ref, error) {
		return Ref{}, volant.Invalidf("image %q: %s", s, why).
			WithRemedy("write [REGISTRY/]NAME[:TAG][@sha256:DIGEST], or docker-archive:FILE, oci-archive:FILE or oci:DIR")
	}
	if len(text) > 4096 {
		return Ref{}, volant.Invalidf("the image's name has %d bytes", len(text)).WithRemedy("write [REGISTRY/]NAME[:TAG]")
	}
	before, digest, pinned := strings.Cut(text, "@")
	var r Ref
	if pinned {
		if r.Digest = volant.Digest(digest); !r.Digest.Valid() {
			return bad("after the @ there is no sha256 digest")
		}
	}
	tag, err := name.NewTag(before, name.WithDefaultTag(""))
	switch {
	case text == "":
		return bad("it is empty")
	case strings.Contains(text, "://"):
		return bad("a name of an image is no URL")
	case strings.ToLower(before) != before && !strings.Contains(before, ":") && err != nil:
		return bad("names of images are lower-case")
	case err != nil:
		return bad("it is no name of an image")
	}
	if !repository.MatchString(tag.RepositoryStr()) || !registryHost.MatchString(tag.RegistryStr()) {
		return bad("it is no name of an image")
	}
	r.Registry, r.Repository, r.Tag = tag.RegistryStr(), tag.RepositoryStr(), tag.TagStr()
	if r.Registry == hub {
		r.Registry = "docker.io"
	}
	if r.Tag == "" && !pinned {
		r.Tag = "latest"
	}
	return r, nil
}

// repository is how the distribution specification spells names.
var repository = regexp.MustCompile(`^[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*$`)

var registryHost = regexp.MustCompile(`^(?:\[[0-9a-fA-F:.]+\]|[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?)(?::[0-9]{1,5})?$`)

// kinds are the prefixes of images that are files.
var kinds = []string{"oci-archive", "oci", "docker-archive"}

// IsFile says whether a reference names a file or directory, which the one who has it must upload.
func IsFile(ref string) bool {
	kind, _, ok := strings.Cut(ref, ":")
	return ok && slices.Contains(kinds, kind)
}
