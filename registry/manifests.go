package registry

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/google/go-containerregistry/pkg/v1/types"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/image"
)

// manifest serves a manifest by tag or digest.
func (g *Registry) manifest(r *request) error {
	d := volant.Digest(r.rest)
	if !d.Valid() && !tagRule.MatchString(r.rest) {
		return oops(http.StatusBadRequest, "TAG_INVALID", "%q is neither a tag nor a sha256 digest", r.rest).WithRemedy("use up to 128 letters, digits, and . _ -")
	}
	switch r.Method {
	case http.MethodGet, http.MethodHead:
		return g.getManifest(r)
	case http.MethodPut:
		return g.putManifest(r)
	case http.MethodDelete:
		return g.removeManifest(r)
	}
	return oops(http.StatusMethodNotAllowed, "UNSUPPORTED", "%s of a manifest is not served", r.Method).WithRemedy("see the OCI distribution specification")
}

func unknown(r *request) error {
	return oops(http.StatusNotFound, "MANIFEST_UNKNOWN", "%s has no image %s", r.name, r.rest).WithRemedy("see `volant image list`")
}

func (g *Registry) getManifest(r *request) error {
	d := volant.Digest(r.rest)
	if !d.Valid() {
		tag, ok := g.tags.Tag(r.org, r.repo, r.rest)
		if !ok {
			return unknown(r)
		}
		d = tag.Digest
	} else if !g.images.Owns(r.view(), d) {
		return unknown(r)
	}
	if err := g.images.Bring(r.Context(), d); errors.Is(err, volant.ErrNotFound) {
		return unknown(r)
	} else if err != nil {
		return err
	}
	raw, err := g.images.Document(d)
	if errors.Is(err, volant.ErrNotFound) || errors.Is(err, volant.ErrInvalid) {
		return unknown(r)
	}
	if err != nil {
		return err
	}
	kind := image.MediaType(raw, "")
	if !isManifest(raw, kind) {
		return unknown(r) // a blob that is none
	}
	h := r.w.Header()
	h.Set("Content-Type", string(kind))
	h.Set("Docker-Content-Digest", string(d))
	h.Set("Content-Length", strconv.Itoa(len(raw)))
	h.Set("Etag", `"`+string(d)+`"`)
	r.w.WriteHeader(http.StatusOK)
	if r.Method == http.MethodGet {
		if err := slowly(r.w, bytes.NewReader(raw)); err != nil {
			g.log.Debug("manifest not sent to its end", "digest", string(d), "err", err)
		}
	}
	return nil
}

// isManifest says whether a document is a manifest or an index. A config has a media type of its own or none.
func isManifest(raw []byte, kind types.MediaType) bool {
	if !kind.IsImage() && !kind.IsIndex() {
		return false
	}
	parts, err := image.Parts(raw)
	return err == nil && (len(parts) > 0 || kind.IsIndex())
}

func (g *Registry) putManifest(r *request) error {
	raw, err := io.ReadAll(io.LimitReader(r.body(), maxManifest+1))
	if err != nil {
		return oops(http.StatusBadRequest, "MANIFEST_INVALID", "the manifest did not come to its end").WithRemedy("push again")
	}
	if len(raw) > maxManifest {
		return oops(http.StatusRequestEntityTooLarge, "MANIFEST_INVALID", "the manifest is larger than %d MiB", maxManifest>>20).WithRemedy("push a smaller image")
	}
	d := image.DigestOf(raw)
	byDigest := volant.Digest(r.rest)
	if byDigest.Valid() && byDigest != d {
		return oops(http.StatusBadRequest, "DIGEST_INVALID", "the manifest is %s, not %s", string(d), r.rest).WithRemedy("push again")
	}
	kind := image.MediaType(raw, r.Header.Get("Content-Type"))
	if !isManifest(raw, kind) {
		return oops(http.StatusBadRequest, "MANIFEST_INVALID", "it is no manifest or index of OCI or Docker (%.100q)", string(kind)).WithRemedy("push with a present-day tool")
	}
	parts, err := image.Parts(raw)
	if err != nil {
		return err
	}
	size := int64(len(raw))
	for _, b := range parts {
		if !g.images.Owns(r.view(), b.Digest) {
			return oops(http.StatusBadRequest, "MANIFEST_BLOB_UNKNOWN", "the manifest names %s, which is not here", string(b.Digest)).WithRemedy("push it first")
		}
		size += b.Size
	}
	if err := g.images.PutFor(r.Context(), r.view(), d, bytes.NewReader(raw)); err != nil {
		return err
	}
	if r.who.Any { // the blobs may be here as those of other organizations
		if err := g.images.Grant(r.org, d); err != nil {
			return err
		}
	}
	if !byDigest.Valid() {
		if err := g.tag(r, d, size); err != nil {
			return err
		}
	}
	return r.created("/v2/"+r.name+"/manifests/"+r.rest, d)
}

func (g *Registry) tag(r *request, d volant.Digest, size int64) error {
	if _, ok := g.tags.Tag(r.org, r.repo, r.rest); !ok {
		if n := len(g.tags.Tags(r.org)); n >= maxTags {
			return denied("organization " + string(r.org) + " has " + strconv.Itoa(n) + " tags, which is the limit").WithRemedy("remove some with `volant image rm`")
		}
	}
	return g.tags.SetTag(r.Context(), r.who.Name, volant.Image{
		Meta: volant.Meta{Kind: volant.KindImage, Org: r.org, ID: volant.ImageID(r.org, r.repo, r.rest)}, Repository: r.repo, Tag: r.rest, Digest: d, Size: size,
	})
}

// removeManifest removes a tag, or all of the repository's tags of a digest.
func (g *Registry) removeManifest(r *request) error {
	var found bool
	for _, t := range g.tags.Tags(r.org) {
		if t.Repository != r.repo || t.Tag != r.rest && string(t.Digest) != r.rest {
			continue
		}
		found = true
		if err := g.tags.RemoveTag(r.Context(), r.who.Name, t); err != nil {
			return err
		}
	}
	if !found {
		return unknown(r)
	}
	r.w.WriteHeader(http.StatusAccepted)
	return nil
}

// list answers with a repository's tags.
func (g *Registry) list(r *request) error {
	if r.Method != http.MethodGet {
		return oops(http.StatusMethodNotAllowed, "UNSUPPORTED", "%s of tags is not served", r.Method).WithRemedy("use GET")
	}
	tags := []string{}
	for _, t := range g.tags.Tags(r.org) {
		if t.Repository == r.repo {
			tags = append(tags, t.Tag)
		}
	}
	if len(tags) == 0 {
		return oops(http.StatusNotFound, "NAME_UNKNOWN", "there is no repository %s", r.name).WithRemedy("see `volant image list`")
	}
	tags, err := page(r.w, r.Request, tags)
	if err != nil {
		return err
	}
	return reply(r.w, http.StatusOK, struct {
		Name string   `json:"name"`
		Tags []string `json:"tags"`
	}{r.name, tags})
}

// catalog answers with the repositories of the caller's organization.
func (g *Registry) catalog(w http.ResponseWriter, r *http.Request, who Caller) error {
	org := who.Org
	if who.Any {
		org = volant.OrgPersonal
	}
	names := []string{}
	for _, t := range g.tags.Tags(org) {
		if who.Only == "" || t.Repository == who.Only {
			names = append(names, string(org)+"/"+t.Repository)
		}
	}
	names, err := page(w, r, names)
	if err != nil {
		return err
	}
	return reply(w, http.StatusOK, struct {
		Repositories []string `json:"repositories"`
	}{names})
}

// page sorts names and cuts out what ?n= and ?last= ask for.
func page(w http.ResponseWriter, r *http.Request, all []string) ([]string, error) {
	slices.Sort(all)
	all = slices.Compact(all)
	q, n := r.URL.Query(), defaultPage
	if s := q.Get("n"); s != "" {
		var err error
		if n, err = strconv.Atoi(s); err != nil || n < 0 {
			return nil, oops(http.StatusBadRequest, "PAGINATION_NUMBER_INVALID", "n=%q: use a number", s).WithRemedy("leave it out")
		}
		n = min(n, defaultPage)
	}
	if last := q.Get("last"); last != "" {
		all = after(all, last)
	}
	if len(all) > n {
		all = all[:n]
		if n > 0 {
			next := url.Values{"n": {strconv.Itoa(n)}, "last": {all[n-1]}}
			w.Header().Set("Link", "<"+strings.TrimSuffix(r.URL.Path, "/")+"?"+next.Encode()+`>; rel="next"`)
		}
	}
	return all, nil
}

func after(sorted []string, last string) []string {
	i, found := slices.BinarySearch(sorted, last)
	if found {
		i++
	}
	return sorted[i:]
}
