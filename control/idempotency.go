package control

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"time"

	volant "github.com/volant-edge/volant"
)

const (
	// keyHeader names a POST, so that it is carried out once however often it is sent.
	keyHeader = "Idempotency-Key"
	// replayHeader says that an answer is that of an earlier request.
	replayHeader = "Idempotent-Replayed"
	// keepAnswers is how long a key is remembered.
	keepAnswers = 24 * time.Hour
	// maxAnswer bounds an answer that is kept. Of a longer one only that it was given is.
	maxAnswer = 256 << 10
)

// answer is what a request with a key was answered.
type answer struct {
	Request string `json:"request"` // hash of it
	Status  int    `json:"status"`
	Type    string `json:"type"`
	Body    []byte `json:"body"`
	Cut     bool   `json:"cut,omitempty"` // the answer is too long to be kept, or was a stream
}

// once carries a POST out by h, unless one with its key was: then that one's answer is given again. Only what was
// done is remembered; a request that was refused may be sent again with its key.
func (s *Server) once(w http.ResponseWriter, c *call, key string, h handler) error {
	if len(key) > 255 || !visible(key) {
		return volant.Invalidf("%s is %q: use 1 to 255 visible ASCII characters", keyHeader, cut(key))
	}
	body, err := c.bytes(w)
	if err != nil {
		return err
	}
	c.r.Body = io.NopCloser(bytes.NewReader(body))
	name := hashOf(c.who.id, c.r.URL.Path, key)
	request := hashOf(c.r.URL.RawQuery, string(body))
	if !s.answers.begin(name) {
		w.Header().Set("Retry-After", "1")
		return volant.Errorf(volant.ErrConflict, "a request with this %s is being carried out", keyHeader).WithRemedy("wait for its answer, or send it again a little later")
	}
	defer s.answers.end(name)
	if old, ok := s.load(name); ok {
		return replay(w, old, request)
	}
	rec := &recorder{ResponseWriter: w}
	if err := h(rec, c); err != nil {
		return err
	}
	if rec.status < 200 || rec.status > 299 {
		return nil
	}
	a := answer{Request: request, Status: rec.status, Type: w.Header().Get("Content-Type"), Body: rec.body.Bytes(), Cut: rec.long || c.begun}
	if a.Cut {
		a.Body = nil
	}
	if err := s.save(name, a); err != nil {
		s.Log.Warn("answer of a request with a key was not kept", "path", c.r.URL.Path, "err", err)
	}
	return nil
}

func replay(w http.ResponseWriter, a answer, request string) error {
	switch {
	case a.Request != request:
		return volant.Errorf(volant.ErrConflict, "this %s was used for another request", keyHeader).WithRemedy("use a new key for each request")
	case a.Cut:
		return volant.Errorf(volant.ErrConflict, "a request with this %s was carried out, and its answer is too long to be kept", keyHeader).
			WithRemedy("look at what it did; to do it again, use a new key")
	}
	if a.Type != "" {
		w.Header().Set("Content-Type", a.Type)
	}
	w.Header().Set(replayHeader, "true")
	w.WriteHeader(a.Status)
	_, _ = w.Write(a.Body) // the caller is gone: nobody to tell
	return nil
}

func visible(s string) bool {
	for i := range len(s) {
		if s[i] < '!' || s[i] > '~' {
			return false
		}
	}
	return s != ""
}

func hashOf(parts ...string) string {
	h := sha256.New()
	for _, p := range parts {
		one := sha256.Sum256([]byte(p)) // so that no part runs into the next
		h.Write(one[:])
	}
	return hex.EncodeToString(h.Sum(nil))
}

// load reads a kept answer. One that cannot be read any more counts as none.
func (s *Server) load(name string) (a answer, ok bool) {
	sealed, ok := s.answers.load(name, time.Now())
	if !ok {
		return a, false
	}
	plain, err := s.Secrets.Open("answer/"+name, sealed)
	if err == nil {
		err = json.Unmarshal(plain, &a)
	}
	if err != nil {
		s.Log.Warn("kept answer cannot be read", "err", err)
		return a, false
	}
	return a, true
}

// save keeps an answer, sealed: it may hold a token.
func (s *Server) save(name string, a answer) error {
	plain, err := json.Marshal(a)
	if err != nil {
		return err
	}
	sealed, err := s.Secrets.Seal("answer/"+name, plain)
	if err != nil {
		return err
	}
	return s.answers.save(name, sealed, time.Now().Add(keepAnswers))
}

// recorder remembers an answer while it is given.
type recorder struct {
	http.ResponseWriter
	status int
	body   bytes.Buffer
	long   bool
}

func (r *recorder) WriteHeader(code int) {
	if r.status == 0 {
		r.status = code
	}
	r.ResponseWriter.WriteHeader(code)
}

func (r *recorder) Write(b []byte) (int, error) {
	if r.status == 0 {
		r.status = http.StatusOK
	}
	if r.long = r.long || r.body.Len()+len(b) > maxAnswer; !r.long {
		r.body.Write(b)
	}
	return r.ResponseWriter.Write(b)
}

// Unwrap lets http.ResponseController through.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

// bytes reads the whole body within bounds.
func (c *call) bytes(w http.ResponseWriter) ([]byte, error) {
	body, err := io.ReadAll(http.MaxBytesReader(w, c.r.Body, maxJSON))
	var big *http.MaxBytesError
	switch {
	case errors.As(err, &big):
		return nil, volant.Invalidf("the body is over %d bytes", maxJSON)
	case err != nil:
		return nil, volant.Invalidf("read the body: %v", err)
	}
	// After an error it stays: the server would else wait for the rest of the body before it answers.
	_ = http.NewResponseController(w).SetReadDeadline(time.Time{})
	return body, nil
}
