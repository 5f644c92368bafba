package control

import (
	"net/http"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/api"
)

func pathDigest(c *call) (volant.Digest, error) {
	d := volant.Digest(c.r.PathValue("digest"))
	if !d.Valid() {
		return "", volant.Invalidf("digest %q: use sha256: and 64 hex digits", c.r.PathValue("digest"))
	}
	return d, nil
}

func (s *Server) hasBlob(w http.ResponseWriter, c *call) error {
	d, err := pathDigest(c)
	if err != nil {
		return err
	}
	if !s.Images.Has(d) {
		return volant.Errorf(volant.ErrNotFound, "blob %s is not here", d)
	}
	w.WriteHeader(http.StatusOK)
	return nil
}

func (s *Server) putBlob(w http.ResponseWriter, c *call) error {
	d, err := pathDigest(c)
	if err != nil {
		return err
	}
	if err := s.Images.Put(c.ctx(), d, steady{c.r.Body, http.NewResponseController(w)}); err != nil {
		return err
	}
	w.WriteHeader(http.StatusCreated)
	return nil
}

// prepareImage builds the root disk of an uploaded image and streams how far it is.
func (s *Server) prepareImage(w http.ResponseWriter, c *call) error {
	d, err := pathDigest(c)
	if err != nil {
		return err
	}
	if !s.Images.Has(d) {
		return volant.Errorf(volant.ErrNotFound, "image %s was not uploaded here", d).WithRemedy("upload its blobs first")
	}
	out := c.stream(w)
	err = s.Images.Prepare(c.ctx(), d, func(phase string, done, total int64) {
		_ = out.send(api.Progress{Phase: phase, Done: done, Total: total}) // a caller that is gone ends ctx
	})
	if err == nil {
		return out.send(api.Progress{Phase: "done"})
	}
	body := s.body(c, err)
	return out.send(api.Progress{Phase: "failed", Error: &body})
}
