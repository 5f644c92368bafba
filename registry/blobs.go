package registry

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	volant "github.com/volant-edge/volant"
)

// blob answers GET and HEAD of a blob.
func (g *Registry) blob(r *request) error {
	d, err := wantDigest(r.rest)
	if err != nil {
		return err
	}
	switch r.Method {
	case http.MethodGet, http.MethodHead:
	case http.MethodDelete:
		return oops(http.StatusMethodNotAllowed, "UNSUPPORTED", "blobs are not deleted one by one").WithRemedy("remove the tag: what nothing names goes by itself")
	default:
		return oops(http.StatusMethodNotAllowed, "UNSUPPORTED", "%s of a blob is not served", r.Method).WithRemedy("see the OCI distribution specification")
	}
	if !g.images.Owns(r.view(), d) {
		return oops(http.StatusNotFound, "BLOB_UNKNOWN", "blob %s is not in %s", d, r.name).WithRemedy("push it first")
	}
	if err := g.images.Bring(r.Context(), d); err != nil {
		return err
	}
	f, n, err := g.images.Blob(d)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // only read from
	h := r.w.Header()
	h.Set("Content-Type", "application/octet-stream")
	h.Set("Docker-Content-Digest", string(d))
	h.Set("Accept-Ranges", "bytes")
	h.Set("Etag", `"`+string(d)+`"`)
	from, code := int64(0), http.StatusOK
	if k, ok := fromRange(r.Header.Get("Range"), n); ok {
		seeker, can := f.(io.Seeker)
		if can {
			if _, err := seeker.Seek(k, io.SeekStart); err != nil {
				return err
			}
			from, code = k, http.StatusPartialContent
			h.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, n-1, n))
		}
	}
	h.Set("Content-Length", strconv.FormatInt(n-from, 10))
	r.w.WriteHeader(code)
	if r.Method == http.MethodHead {
		return nil
	}
	if err := slowly(r.w, f); err != nil {
		g.log.Debug("blob not sent to its end", "digest", string(d), "err", err)
	}
	return nil
}

// fromRange reads "bytes=N-": how a download goes on. Other forms get the whole blob.
func fromRange(s string, n int64) (from int64, ok bool) {
	var rest string
	if c, err := fmt.Sscanf(s, "bytes=%d-%s", &from, &rest); c != 1 || err == nil {
		return 0, false
	}
	return from, from > 0 && from < n
}

// upload begins an upload, goes on with it, or ends it.
func (g *Registry) upload(r *request) error {
	if r.rest == "" {
		if r.Method != http.MethodPost {
			return oops(http.StatusMethodNotAllowed, "UNSUPPORTED", "uploads begin with POST").WithRemedy("see the OCI distribution specification")
		}
		return g.begin(r)
	}
	u := g.find(r)
	if u == nil {
		return oops(http.StatusNotFound, "BLOB_UPLOAD_UNKNOWN", "there is no such upload: it ended, or the server was restarted").WithRemedy("push again")
	}
	if !u.mu.TryLock() {
		return oops(http.StatusRequestedRangeNotSatisfiable, "BLOB_UPLOAD_INVALID", "another request goes on with this upload").WithRemedy("push again")
	}
	defer u.mu.Unlock()
	switch r.Method {
	case http.MethodGet, http.MethodHead:
		g.progress(r, u, http.StatusNoContent)
		return nil
	case http.MethodPatch:
		if err := g.appendTo(r, u); err != nil {
			return err
		}
		g.progress(r, u, http.StatusAccepted)
		return nil
	case http.MethodPut:
		d, err := wantDigest(r.URL.Query().Get("digest"))
		if err != nil {
			return err
		}
		if err := g.appendTo(r, u); err != nil {
			return err
		}
		g.forget(r.rest)
		return g.commit(r, u, d)
	case http.MethodDelete:
		g.forget(r.rest)
		u.up.Cancel()
		r.w.WriteHeader(http.StatusNoContent)
		return nil
	}
	return oops(http.StatusMethodNotAllowed, "UNSUPPORTED", "%s of an upload is not served", r.Method).WithRemedy("see the OCI distribution specification")
}

// begin answers POST: a blob that another repository has is mounted, a digest makes it an upload of one
// request, and else an upload is begun.
func (g *Registry) begin(r *request) error {
	q := r.URL.Query()
	if d := volant.Digest(q.Get("mount")); d.Valid() && g.images.Owns(r.view(), d) {
		// A caller for all organizations sees the blob of one; the others get it when a manifest names it.
		return r.created("/v2/"+r.name+"/blobs/"+string(d), d)
	}
	var d volant.Digest
	if s := q.Get("digest"); s != "" {
		var err error
		if d, err = wantDigest(s); err != nil {
			return err
		}
	}
	u, id, err := g.open(r)
	if err != nil {
		return err
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	r.rest = id
	if d == "" {
		g.progress(r, u, http.StatusAccepted)
		return nil
	}
	defer g.forget(id)
	if err := u.up.Append(r.Context(), r.body()); err != nil {
		u.up.Cancel()
		return err
	}
	return g.commit(r, u, d)
}

func (g *Registry) open(r *request) (*upload, string, error) {
	up, err := g.images.Begin(r.org)
	if err != nil {
		return nil, "", err
	}
	b := make([]byte, 16)
	rand.Read(b) // never fails since Go 1.24
	id, now := hex.EncodeToString(b), time.Now()
	u := &upload{up: up, org: r.org, repo: r.repo, used: now}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.sweepLocked(now)
	n := 0
	for _, other := range g.uploads {
		if other.org == r.org {
			n++
		}
	}
	if n >= maxUploads {
		up.Cancel()
		return nil, "", oops(http.StatusTooManyRequests, "TOOMANYREQUESTS", "organization %s has %d uploads under way", r.org, n).
			WithRemedy("wait until some have ended; those that nobody goes on with end after %s", uploadIdle)
	}
	g.uploads[id] = u
	return u, id, nil
}

func (g *Registry) find(r *request) *upload {
	g.mu.Lock()
	defer g.mu.Unlock()
	u := g.uploads[r.rest]
	if u == nil || u.org != r.org || u.repo != r.repo {
		return nil
	}
	u.used = time.Now()
	return u
}

func (g *Registry) forget(id string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.uploads, id)
}

// appendTo adds the request's body, if it goes on where the upload is.
func (g *Registry) appendTo(r *request, u *upload) error {
	if s := r.Header.Get("Content-Range"); s != "" {
		var from, to int64
		if _, err := fmt.Sscanf(s, "%d-%d", &from, &to); err != nil || from != u.up.Size() {
			r.w.Header().Set("Range", have(u))
			r.w.Header().Set("Location", r.place())
			return oops(http.StatusRequestedRangeNotSatisfiable, "BLOB_UPLOAD_INVALID", "the upload has %d bytes, and this piece is %q", u.up.Size(), s).
				WithRemedy("go on where it is")
		}
	}
	err := u.up.Append(r.Context(), r.body())
	var e *volant.Error
	if errors.As(err, &e) { // too large, or no room: it cannot go on
		g.forget(r.rest)
		u.up.Cancel()
	}
	return err
}

func (r *request) place() string { return "/v2/" + r.name + "/blobs/uploads/" + r.rest }

// have is the range of bytes that an upload has, as the specification writes it.
func have(u *upload) string { return fmt.Sprintf("0-%d", max(u.up.Size()-1, 0)) }

func (g *Registry) progress(r *request, u *upload, code int) {
	h := r.w.Header()
	h.Set("Location", r.place())
	h.Set("Range", have(u))
	h.Set("Docker-Upload-Uuid", r.rest)
	h.Set("Content-Length", "0")
	r.w.WriteHeader(code)
}

func (g *Registry) commit(r *request, u *upload, d volant.Digest) error {
	if err := u.up.Commit(r.org, d); err != nil {
		var e *volant.Error
		if errors.As(err, &e) && errors.Is(err, volant.ErrInvalid) {
			return &answer{http.StatusBadRequest, "DIGEST_INVALID", e}
		}
		return err
	}
	return r.created("/v2/"+r.name+"/blobs/"+string(d), d)
}

func (r *request) created(at string, d volant.Digest) error {
	h := r.w.Header()
	h.Set("Location", at)
	h.Set("Docker-Content-Digest", string(d))
	h.Set("Content-Length", "0")
	r.w.WriteHeader(http.StatusCreated)
	return nil
}
